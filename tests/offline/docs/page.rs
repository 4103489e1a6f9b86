//! The pages, and as much of Markdown as they use.

use std::{collections::BTreeSet, env, fs, path::Path};

use test_support::repository;

/// A page of the documentation.
pub struct Page {
    /// Its path in the repository.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// Every page that users and contributors read.
pub fn all() -> Vec<Page> {
    let mut paths = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "certs/README.md", "manifests/README.md"]
        .map(str::to_owned)
        .to_vec();
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            paths.push(format!("docs/{name}"));
        }
    }
    paths.sort();
    paths.into_iter().map(|path| Page { text: fs::read_to_string(repository().join(&path)).unwrap(), path }).collect()
}

/// One of them.
pub fn named(path: &str) -> Page {
    all().into_iter().find(|page| page.path == path).unwrap_or_else(|| panic!("no page {path}"))
}

impl Page {
    /// The lines of fenced blocks in one of these languages, each block on its own.
    pub fn blocks(&self, languages: &[&str]) -> Vec<Vec<&str>> {
        let mut blocks = Vec::new();
        let mut fence: Option<(bool, Vec<&str>)> = None;
        for line in self.text.lines() {
            match (line.trim_start().strip_prefix("```"), fence.take()) {
                (Some(language), None) => fence = Some((languages.contains(&language.trim()), Vec::new())),
                (Some(_), Some((true, lines))) => blocks.push(lines),
                (Some(_), Some((false, _))) | (None, None) => {}
                (None, Some((wanted, mut lines))) => {
                    lines.push(line);
                    fence = Some((wanted, lines));
                }
            }
        }
        assert!(fence.is_none(), "{}: a block has no end", self.path);
        blocks
    }

    /// The lines outside of fenced blocks.
    pub fn prose(&self) -> Vec<&str> {
        let mut is_fenced = false;
        let outside = |line: &&str| {
            let is_fence = line.trim_start().starts_with("```");
            is_fenced ^= is_fence;
            !is_fence && !is_fenced
        };
        self.text.lines().filter(outside).collect()
    }

    /// What is set as code in the prose.
    pub fn spans(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        let parts = prose.split('`').skip(1).step_by(2);
        parts.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// Commands: the lines of shell blocks, continued ones as one, and what is set as code.
    pub fn commands(&self) -> Vec<String> {
        let blocks = self.blocks(&["sh"]);
        let text = blocks.iter().map(|lines| lines.join("\n")).collect::<Vec<_>>().join("\n");
        let text = text.replace("\\\n", " ");
        let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned());
        lines.filter(|line| !line.starts_with('#')).chain(self.spans()).collect()
    }

    /// Where links lead.
    pub fn links(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        links.map(|(link, _)| link.to_owned()).collect()
    }

    /// The anchors of its headings, as GitLab and GitHub make them.
    pub fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose().into_iter().filter_map(|line| line.strip_prefix('#'));
        headings.map(|heading| anchor(heading.trim_start_matches('#').trim())).collect()
    }

    /// Holds the part between `<!-- generated: NAME -->` and `<!-- end -->` to what it is to be, or writes it.
    pub fn hold(&mut self, name: &str, expected: &str) {
        let begin = format!("<!-- generated: {name} -->\n");
        let (before, rest) = self.text.split_once(&begin).unwrap_or_else(|| panic!("{}: no {begin}", self.path));
        let (there, after) = rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("{name} has no end"));
        if there == expected {
            return;
        }
        assert!(
            env::var_os("UPDATE_DOCS").is_some(),
            "{}: {name} is not what the code says; UPDATE_DOCS=1 cargo test --test offline docs:: writes it:\n{expected}",
            self.path
        );
        self.text = format!("{before}{begin}{expected}<!-- end -->{after}");
        // At once, for other tests read it meanwhile.
        let path = repository().join(&self.path);
        let new = path.with_extension("new");
        fs::write(&new, &self.text).unwrap();
        fs::rename(new, path).unwrap();
    }
}

/// A table.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<_> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    line(&head) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

/// Text for a cell of a table.
pub fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "\\<")
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
