//! Findings, and how they are told: as text or as JSON. PURE.

use std::fmt::Write as _;

use serde::Serialize;

use crate::terminal::{printable, printable_lines};

/// Version of the JSON. It grows when a field goes or changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// Declares what is looked at, with the word for each.
macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What is looked at. The word is stable: scripts may rely on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Check {
            $($(#[$doc])* $name,)*
        }

        impl Check {
            /// All of them, in the order in which they are told.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its word in the output.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

checks! {
    /// Does the API server answer?
    Cluster = "cluster",
    /// Can the configuration that the program runs with be read and used?
    Configuration = "configuration",
    /// Is each source there, of a type that can be cloned, with the keys that manager pods mount?
    Source = "source",
    /// Is there a usable token in the source?
    Token = "token",
    /// Is each runner namespace there?
    RunnerNamespace = "runner-namespace",
    /// Does each clone equal its source, and whose is it?
    Clone = "clone",
    /// Did each manager pod start after the token that it reads was written?
    ManagerToken = "manager-token",
    /// Is the program's Deployment available?
    Deployment = "deployment",
    /// Does its Service have ready endpoints?
    Endpoints = "endpoints",
    /// Are both webhook configurations there?
    Registration = "registration",
    /// Is `caBundle` of each webhook usable?
    CaBundle = "ca-bundle",
    /// How long do the serving CA and the leaf live?
    ServingCa = "serving-ca",
    /// Does the API server reach the program?
    Reach = "reach",
    /// Who may call the webhooks?
    Callers = "callers",
    /// Is `certsSecretName` there and readable, and how long do its certificates live?
    Certs = "certs",
    /// Does the manager pod know the CAs in it?
    CertsHost = "certs-host",
    /// Is the trust bundle there and current?
    TrustBundle = "trust-bundle",
    /// Does the `ServiceAccount` have each right that it needs, and no other?
    Rights = "rights",
    /// Do the webhooks select what the configuration says?
    Webhooks = "webhooks",
    /// Are the admission policies there, and do they say what the configuration says?
    Guards = "guards",
    /// Is Kyverno's policy gone?
    Kyverno = "kyverno",
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works today; worth a look.
    Warning,
    /// Does not work, or will not when it is needed.
    Fault,
    /// Nobody can say: it could not be seen.
    Unseen,
}

impl Level {
    /// Its word in the output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
            Self::Unseen => "unseen",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Ok => "✓",
            Self::Warning => "!",
            Self::Fault => "✗",
            Self::Unseen => "?",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "32",
            Self::Warning => "33",
            Self::Fault => "31",
            Self::Unseen => "36",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// How bad it is.
    pub level: Level,
    /// The object, such as `gitlab/gitlab-gitlab-runner-secret`.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// The impact. Empty when all is well.
    pub impact: String,
    /// The fix: a sentence, commands or YAML. Empty when all is well.
    pub remediation: String,
}

impl Finding {
    pub(super) fn new(check: Check, level: Level, subject: impl Into<String>, what: impl Into<String>) -> Self {
        let (subject, what) = (subject.into(), what.into());
        Self { check, level, subject, what, impact: String::new(), remediation: String::new() }
    }

    pub(super) fn ok(check: Check, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, subject, what)
    }

    pub(super) fn warning(check: Check, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, subject, what)
    }

    pub(super) fn fault(check: Check, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(check, Level::Fault, subject, what)
    }

    /// Nothing can be said.
    pub(super) fn unseen(check: Check, subject: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::new(check, Level::Unseen, subject, format!("could not see: {problem}"))
            .impact("Without it nobody can say whether it is as it should be.")
            .remediation(
                "Run the check as somebody who may read it; docs/check.md has a ClusterRole with the rights it takes.",
            )
    }

    #[must_use]
    pub(super) fn impact(mut self, impact: impl Into<String>) -> Self {
        self.impact = impact.into();
        self
    }

    #[must_use]
    pub(super) fn remediation(mut self, remediation: impl Into<String>) -> Self {
        self.remediation = remediation.into();
        self
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.check);
        // The one place through which everything goes that came from the cluster or from a certificate.
        for Finding { subject, what, impact, remediation, .. } in &mut findings {
            (*subject, *what) = (printable(subject), printable(what));
            (*impact, *remediation) = (printable_lines(impact), printable_lines(remediation));
        }
        Self { findings }
    }

    /// What was found, in the order of [`Check::ALL`].
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// 0: no fault; there may be warnings. 1: a fault. 2: no fault seen, but something could not be seen.
    pub fn exit_code(&self) -> u8 {
        match (self.count(Level::Fault), self.count(Level::Unseen)) {
            (0, 0) => 0,
            (0, _) => 2,
            _ => 1,
        }
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// One line for each finding, then what is to be done about those that are not well.
    pub fn text(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let sign = |level: Level| paint(level.colour(), level.sign());
        let width = self.findings.iter().map(|finding| finding.check.as_str().len()).max().unwrap_or_default();
        let mut text = String::new();
        for Finding { check, level, subject, what, .. } in &self.findings {
            let _ = writeln!(text, "{} {:width$}  {subject}: {what}", sign(*level), check.as_str());
        }
        let concerned = |level: Level| self.findings.iter().filter(move |finding| finding.level == level);
        for finding in [Level::Fault, Level::Warning, Level::Unseen].into_iter().flat_map(concerned) {
            let Finding { check, level, subject, what, impact, remediation } = finding;
            let head = format!("{}  {subject}: {what}", check.as_str());
            let _ = writeln!(text, "\n{} {}", sign(*level), paint("1", &head));
            for (label, words) in [("impact", impact), ("remediation", remediation)] {
                if !words.is_empty() {
                    let _ = writeln!(text, "  {label}:\n    {}", words.trim_end().replace('\n', "\n    "));
                }
            }
        }
        let (faults, warnings) = (self.count(Level::Fault), self.count(Level::Warning));
        let counts =
            [counted(faults, "fault"), counted(warnings, "warning"), format!("{} not seen", self.count(Level::Unseen))];
        let _ = writeln!(text, "\n{} as it should be, {}", self.count(Level::Ok), counts.join(", "));
        text
    }

    /// The same as JSON: docs/check.md has the schema.
    pub fn json(&self) -> String {
        let findings = self.findings.iter().map(|finding| FindingJson {
            check: finding.check.as_str(),
            level: finding.level.as_str(),
            subject: &finding.subject,
            what: &finding.what,
            impact: &finding.impact,
            remediation: &finding.remediation,
        });
        let report = ReportJson {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            exit_code: self.exit_code(),
            counts: CountsJson {
                ok: self.count(Level::Ok),
                warning: self.count(Level::Warning),
                fault: self.count(Level::Fault),
                unseen: self.count(Level::Unseen),
            },
            findings: findings.collect(),
        };
        // Strings and numbers only: nothing in it can fail.
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    }
}

/// `1 webhook`, `2 webhooks`.
pub(super) fn counted(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportJson<'a> {
    schema: u32,
    version: &'static str,
    exit_code: u8,
    counts: CountsJson,
    findings: Vec<FindingJson<'a>>,
}

#[derive(Serialize)]
struct CountsJson {
    ok: usize,
    warning: usize,
    fault: usize,
    unseen: usize,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    check: &'static str,
    level: &'static str,
    subject: &'a str,
    what: &'a str,
    #[serde(rename = "why")]
    impact: &'a str,
    #[serde(rename = "mend")]
    remediation: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(levels: &[Level]) -> Report {
        let finding =
            |level: &Level| Finding::new(Check::Clone, *level, "a/b", "is so").impact("it").remediation("x\ny");
        Report::new(levels.iter().map(finding).collect())
    }

    #[test]
    fn the_exit_code_says_the_worst() {
        use Level::{Fault, Ok, Unseen, Warning};
        for (levels, code) in [
            (vec![], 0),
            (vec![Ok, Warning], 0),
            (vec![Ok, Unseen], 2),
            (vec![Unseen, Fault], 1),
            (vec![Ok, Fault, Warning], 1),
        ] {
            assert_eq!(report(&levels).exit_code(), code, "{levels:?}");
        }
    }

    #[test]
    fn text_has_a_line_for_each_and_a_block_for_what_is_not_well() {
        let text = report(&[Level::Ok, Level::Fault]).text(false);
        let expected = "✓ clone  a/b: is so\n✗ clone  a/b: is so\n\n✗ clone  a/b: is so\n  impact:\n    it\n  \
                        remediation:\n    x\n    y\n\n1 as it should be, 1 fault, 0 warnings, 0 not seen\n";
        assert_eq!(text, expected);
        let coloured = report(&[Level::Fault]).text(true);
        assert!(coloured.starts_with("\u{1b}[31m✗\u{1b}[0m clone"), "{coloured:?}");
    }

    #[test]
    fn what_a_certificate_says_does_nothing_to_a_terminal() {
        let hostile = "CN=a\u{1b}[2J\u{9b}31m\n✓ clone  all is well\u{202e}\u{2066}\r";
        let finding = Finding::fault(Check::Certs, hostile, hostile).impact(hostile).remediation(hostile);
        let report = Report::new(vec![finding]);
        for text in [report.text(false), report.json()] {
            let is_bad = |char: char| char != '\n' && (char.is_control() || "\u{202e}\u{2066}".contains(char));
            assert!(!text.contains(is_bad), "{text:?}");
            assert!(!text.lines().any(|line| line.starts_with('✓')), "a line of its own: {text}");
        }
        assert!(report.findings()[0].what.starts_with(r"CN=a\u{1b}[2J\u{9b}31m\n✓ clone"));
    }

    #[test]
    fn json_has_every_field() {
        let json: serde_json::Value = serde_json::from_str(&report(&[Level::Fault]).json()).unwrap();
        let expected = serde_json::json!({
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "exitCode": 1,
            "counts": {"ok": 0, "warning": 0, "fault": 1, "unseen": 0},
            "findings": [{"check": "clone", "level": "fault", "subject": "a/b", "what": "is so", "why": "it", "mend": "x\ny"}],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn findings_are_told_in_the_order_of_the_checks() {
        let findings = Check::ALL.iter().rev().map(|check| Finding::ok(*check, "", "")).collect();
        let told: Vec<_> = Report::new(findings).findings().iter().map(|finding| finding.check).collect();
        assert_eq!(told, Check::ALL);
    }
}
