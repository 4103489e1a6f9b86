//! What a watch tells. PURE.

use super::Problem;

/// What a watch tells. An object deleted while the watch was down is merely missing between
/// [`Change::ListBegins`] and [`Change::ListEnds`].
#[derive(Debug)]
pub enum Change<T> {
    /// A list begins: what is not listed until it ends is gone.
    ListBegins,
    /// An object of the list.
    Listed(T),
    /// The list is complete.
    ListEnds,
    /// An object was created or changed.
    Applied(T),
    /// An object was deleted; this was its last state.
    Deleted(T),
    /// The connection failed; it is tried again. What is known stays true until told otherwise.
    Failed(Problem),
}

impl<T> Change<T> {
    /// The same change of another view of the object.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Change<U> {
        match self {
            Self::ListBegins => Change::ListBegins,
            Self::Listed(object) => Change::Listed(convert(object)),
            Self::ListEnds => Change::ListEnds,
            Self::Applied(object) => Change::Applied(convert(object)),
            Self::Deleted(object) => Change::Deleted(convert(object)),
            Self::Failed(problem) => Change::Failed(problem),
        }
    }
}
