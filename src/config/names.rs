//! Names that are known to be valid.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, de};

/// Why a string is not a Kubernetes name.
#[derive(Debug, thiserror::Error)]
#[error("{value:?} is not a {what}: {expected}")]
pub struct NameError {
    value: String,
    what: &'static str,
    expected: &'static str,
}

/// Declares a newtype around a string that was checked once, when it was made.
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $valid:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it is written in manifests.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                if value.len() <= $max && $valid(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(NameError { value: value.to_owned(), what: $what, expected: $expected })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

checked_name!(
    /// Name of a Namespace: an RFC 1123 label.
    NamespaceName,
    "namespace name",
    63,
    is_label,
    "lower-case letters, digits and '-', at most 63, with a letter or digit at both ends"
);

checked_name!(
    /// Name of a Service: an RFC 1035 label.
    ServiceName,
    "Service name",
    63,
    |value: &str| is_label(value) && !value.starts_with(|first: char| first.is_ascii_digit()),
    "lower-case letters, digits and '-', at most 63, with a letter first and a letter or digit last"
);

checked_name!(
    /// Name of a Secret: an RFC 1123 subdomain.
    SecretName,
    "Secret name",
    253,
    |value: &str| value.split('.').all(is_label_of_any_length),
    "lower-case letters, digits, '-' and '.', at most 253, with a letter or digit at both ends of each part"
);

checked_name!(
    /// Name of a Deployment: an RFC 1123 subdomain.
    DeploymentName,
    "Deployment name",
    253,
    |value: &str| value.split('.').all(is_label_of_any_length),
    "lower-case letters, digits, '-' and '.', at most 253, with a letter or digit at both ends of each part"
);

checked_name!(
    /// Name of a webhook configuration: an RFC 1123 subdomain.
    ConfigurationName,
    "name of a webhook configuration",
    253,
    |value: &str| value.split('.').all(is_label_of_any_length),
    "lower-case letters, digits, '-' and '.', at most 253, with a letter or digit at both ends of each part"
);

checked_name!(
    /// Name of a Kyverno policy: an RFC 1123 subdomain, and the value of a label on each clone.
    PolicyName,
    "policy name",
    63,
    |value: &str| value.split('.').all(is_label_of_any_length),
    "lower-case letters, digits, '-' and '.', at most 63, with a letter or digit at both ends of each part"
);

fn is_label(value: &str) -> bool {
    value.len() <= 63 && is_label_of_any_length(value)
}

/// Kubernetes limits a subdomain as a whole to 253 characters, not its parts to 63.
fn is_label_of_any_length(value: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = value.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_names() {
        for good in ["a", "gitlab-runner", "0-9", &"a".repeat(63)] {
            assert!(good.parse::<NamespaceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<NamespaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn secret_names() {
        for good in ["a", "a.b", "gitlab-gitlab-runner-secret", &"a".repeat(253)] {
            assert!(good.parse::<SecretName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "a.-b", "a.", "A", "a/b", &"a".repeat(254)] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn service_names() {
        for good in ["a", "gitlab-runner-webhook", "a0"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "0a", "a-", "a.b", "a/b", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn policy_names() {
        for good in ["a", "a.b", "sync-gitlab-runner-secret", &"a".repeat(63)] {
            assert!(good.parse::<PolicyName>().is_ok(), "{good}");
        }
        for bad in ["", "a/b", "../x", "A", "a/", "/a", &"a".repeat(64)] {
            assert!(bad.parse::<PolicyName>().is_err(), "{bad}");
        }
        let error = "Foo".parse::<PolicyName>().unwrap_err().to_string();
        assert!(error.contains("\"Foo\" is not a policy name"), "{error}");
    }

    #[test]
    fn the_error_names_the_value_and_what_is_expected() {
        let error = "Git_Lab".parse::<NamespaceName>().unwrap_err().to_string();
        assert!(error.contains("\"Git_Lab\"") && error.contains("lower-case"), "{error}");
    }
}
