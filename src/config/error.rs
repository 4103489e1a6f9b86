//! What is wrong with a configuration file.

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML, an unknown field, or a value of the wrong form.
    #[error("{0}")]
    Yaml(String),
    /// Each field is fine on its own, but not together.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, as a path in the file.
        field: String,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
}

pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field: field.into(), problem: problem.into() }
}
