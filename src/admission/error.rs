//! Why a review cannot be answered. PURE.

/// Why a review got no decision. Nothing of its content is repeated in a message.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The body is longer than the limit.
    #[error("the review is longer than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    #[error("the review did not arrive within {seconds} s")]
    TooSlow {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The connection broke while the body was read.
    #[error("the review did not arrive in full")]
    CutOff,
    /// Something else than JSON was announced.
    #[error("expected Content-Type: application/json")]
    ContentType,
    /// Not JSON, or a field of another type than in the API.
    #[error("the body is not a JSON AdmissionReview: {problem} at line {line} column {column}")]
    Json {
        /// What kind of problem it is.
        problem: &'static str,
        /// Line of the body, from 1.
        line: usize,
        /// Column of that line.
        column: usize,
    },
    /// More elements of lists and maps than any pod has.
    #[error(
        "the object has more than 300 containers, or {limit} elements in lists and maps that decide what is done with it"
    )]
    TooComplex {
        /// The limit.
        limit: usize,
    },
    /// A version that was removed from Kubernetes in 1.22.
    #[error(
        "admission.k8s.io/v1beta1 is not spoken here: set admissionReviewVersions: [v1] in the webhook configuration"
    )]
    Version,
    /// Another object.
    #[error("expected kind AdmissionReview of apiVersion admission.k8s.io/v1")]
    Kind,
    /// A field that each review has is not there.
    #[error("the AdmissionReview has no {field}")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// A uid that no API server makes.
    #[error("request.uid must have at most {limit} bytes of printable ASCII")]
    Uid {
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer could not be written as JSON.
    #[error("the answer cannot be written as JSON")]
    Answer,
}

impl ReviewError {
    /// The reason as metric label and log field.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too-large",
            Self::TooSlow { .. } => "too-slow",
            Self::CutOff => "cut-off",
            Self::ContentType => "content-type",
            Self::Json { .. } => "not-json",
            Self::TooComplex { .. } => "too-complex",
            Self::Version => "version",
            Self::Kind => "kind",
            Self::Missing { .. } => "incomplete",
            Self::Uid { .. } => "uid",
            Self::Answer => "answer",
        }
    }

    /// The HTTP status that says it.
    pub fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } | Self::TooComplex { .. } => 413,
            Self::TooSlow { .. } => 408,
            Self::ContentType => 415,
            Self::CutOff | Self::Json { .. } | Self::Version | Self::Kind | Self::Missing { .. } | Self::Uid { .. } => {
                400
            }
            Self::Answer => 500,
        }
    }
}
