//! What the house rules say of the sources, where a compiler does not: the sources are parsed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Item, ItemMod, Meta, UseTree, visit::Visit};
use test_support::repository;

/// A source file of a crate, as its root declares it.
struct Source {
    path: PathBuf,
    text: String,
    /// `config` in `src/config/file.rs`.
    module: String,
    /// Each path that the file names, by its words, test code left out: `["crate", "config", "Config"]`.
    names: BTreeSet<Vec<String>>,
    /// The methods that it calls.
    methods: BTreeSet<String>,
    /// The types that it declares, those of single functions left out.
    types: Vec<String>,
}

impl Source {
    fn head(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|line| line.starts_with("//!"))
    }

    fn is_pure(&self) -> bool {
        self.head().any(|line| line.contains("PURE."))
    }
}

/// All files of a crate but those that only tests see.
fn sources(root: &str) -> Vec<Source> {
    let mut found = Vec::new();
    follow(&repository().join(root), &[], &mut found);
    assert!(found.len() > 10, "{root}: {} files", found.len());
    found
}

fn follow(path: &Path, place: &[String], found: &mut Vec<Source>) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut visitor = Visitor::default();
    visitor.visit_file(&file);
    let module = place.first().cloned().unwrap_or_default();
    let Visitor { names, methods, types, modules, .. } = visitor;
    found.push(Source { path: path.to_owned(), text, module, names, methods, types });
    let is_root = ["lib.rs", "main.rs", "mod.rs"].iter().any(|name| path.ends_with(name));
    let folder = if is_root { path.parent().unwrap().to_owned() } else { path.with_extension("") };
    for name in modules {
        let child = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
        let child = child.iter().find(|child| child.exists()).unwrap_or_else(|| panic!("{name} of {}", path.display()));
        follow(child, &[place, &[name]].concat(), found);
    }
}

#[derive(Default)]
struct Visitor {
    names: BTreeSet<Vec<String>>,
    methods: BTreeSet<String>,
    types: Vec<String>,
    /// Modules in files of their own.
    modules: Vec<String>,
    is_in_function: bool,
}

impl Visitor {
    fn use_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.use_tree(&with(&path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(before, item)),
            UseTree::Name(name) => {
                self.names.insert(with(&name.ident));
            }
            UseTree::Rename(rename) => {
                self.names.insert(with(&rename.ident));
            }
            UseTree::Glob(_) => {
                self.names.insert(before.to_vec());
            }
        }
    }

    /// What is in a macro is no path yet.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 => path.push(ident.to_string()),
                TokenTree::Ident(ident) => {
                    self.names.insert(std::mem::take(&mut path));
                    path = vec![ident.to_string()];
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
            colons = 0;
        }
        self.names.insert(path);
    }
}

fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        meta => meta.path().is_ident("test"),
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_of_tests(attributes(item)) {
            return;
        }
        let declared = match item {
            Item::Enum(item) => Some(&item.ident),
            Item::Struct(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        self.types.extend(declared.filter(|_| !self.is_in_function).map(ToString::to_string));
        syn::visit::visit_item(self, item);
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let was_in_function = std::mem::replace(&mut self.is_in_function, true);
        syn::visit::visit_block(self, block);
        self.is_in_function = was_in_function;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_of_tests(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.content.is_none() {
            self.modules.push(item.ident.to_string());
        }
        syn::visit::visit_item_mod(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.names.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        syn::visit::visit_macro(self, item);
    }
}

/// Where a file of ours is in the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap().display().to_string()
}

/// What is between backticks, brackets aside.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn each_module_of_the_server_knows_what_the_table_in_lib_rs_says_and_nothing_else() {
    let sources = sources("src/lib.rs");
    let rows: Vec<Vec<String>> = sources[0]
        .head()
        .filter_map(|line| line.strip_prefix("//! | "))
        .map(|row| row.trim_end_matches(" |").split(" | ").map(str::to_owned).collect())
        .skip(1)
        .collect();
    let (mut large, mut small) = (BTreeMap::new(), BTreeSet::new());
    for row in &rows {
        for name in quoted(&row[0]) {
            if row[0].contains('[') && name != "names" {
                large.insert(name, row[2].clone());
            } else {
                small.insert(name);
            }
        }
    }
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let used = used.entry(&source.module).or_default();
        let modules = source.names.iter().filter(|name| name[..].first().is_some_and(|first| first == "crate"));
        used.extend(modules.filter_map(|name| name.get(1)).map(String::as_str).filter(|name| *name != source.module));
    }
    let declared: BTreeSet<&str> = used.keys().copied().collect();
    let listed: BTreeSet<&str> = large.keys().chain(&small).map(String::as_str).collect();
    assert_eq!(declared, listed, "modules, and those in the table");
    for (module, used) in used {
        let of_small = |name: &&&str| small.contains(**name);
        let others: BTreeSet<_> = used.iter().filter(|name| !of_small(name)).copied().collect();
        match large.get(module).map(String::as_str) {
            Some("everything") => {}
            Some(known) => {
                let known = quoted(known);
                assert_eq!(others, known.iter().map(String::as_str).collect(), "{module}: used, and in the table");
            }
            None => assert_eq!(others, BTreeSet::new(), "{module} is one of the small ones"),
        }
    }
}

/// Who searches for a type finds one.
#[test]
fn type_names_are_unique_in_each_crate() {
    for (root, modules_of_their_own) in [("src/lib.rs", &[][..]), ("cli/src/lib.rs", &["Arguments"])] {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for source in sources(root) {
            for name in source.types.iter().filter(|name| !modules_of_their_own.contains(&name.as_str())) {
                places.entry(name.clone()).or_default().push(shown(&source.path));
            }
        }
        places.retain(|_, places| places.len() > 1);
        assert!(places.is_empty(), "{root}: {places:#?}");
    }
}

/// No command knows the inside of another; `migrate` goes one day, and nothing else may notice.
#[test]
fn nothing_knows_migrate_but_the_list_of_commands() {
    for source in sources("cli/src/lib.rs").iter().filter(|source| !["", "migrate"].contains(&source.module.as_str())) {
        let knows = source.names.iter().any(|name| name.iter().any(|word| word == "migrate"));
        assert!(!knows, "{}", shown(&source.path));
    }
}

#[test]
fn pure_files_do_no_input_or_output_and_read_no_clock() {
    let of_io = |name: &[&str]| match name {
        ["tokio" | "axum" | "hyper" | "hyper_util" | "tower" | "tokio_rustls", ..] => true,
        ["std", module, ..] => ["fs", "net", "process", "env", "thread"].contains(module),
        ["kube", part, ..] => ["Api", "Client", "client", "runtime"].contains(part),
        [.., kind, "now"] => ["Instant", "SystemTime", "Timestamp", "Zoned"].contains(kind),
        _ => false,
    };
    for (root, at_least) in [("src/lib.rs", 20), ("cli/src/lib.rs", 15)] {
        let sources = sources(root);
        let pure: Vec<_> = sources.iter().filter(|source| source.is_pure()).collect();
        assert!(pure.len() >= at_least, "{root}: {} PURE files", pure.len());
        for source in pure {
            for name in &source.names {
                let words: Vec<_> = name.iter().map(String::as_str).collect();
                assert!(!of_io(&words), "{} says PURE and names {}", shown(&source.path), words.join("::"));
            }
            assert!(!source.methods.contains("elapsed"), "{} says PURE and reads a clock", shown(&source.path));
        }
    }
}

#[test]
fn a_grouped_import_a_macro_and_a_clock_are_seen() {
    let file = syn::parse_file(
        "use kube::{Api, core::Resource}; use crate::{a::{B, C as D}, e}; fn f() { select! { x = g::h() => {} }; t.elapsed(); }
         #[cfg(test)] mod tests { use tokio::time; }",
    );
    let mut visitor = Visitor::default();
    visitor.visit_file(&file.unwrap());
    let names: BTreeSet<_> = visitor.names.iter().map(|name| name.join("::")).collect();
    for name in ["kube::Api", "kube::core::Resource", "crate::a::B", "crate::a::C", "crate::e", "g::h"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    assert!(visitor.methods.contains("elapsed") && !names.iter().any(|name| name.starts_with("tokio")));
}

#[test]
fn files_stay_short_enough_to_read() {
    for root in ["src/lib.rs", "cli/src/lib.rs"] {
        for source in sources(root) {
            let lines = source.text.lines().count();
            assert!(lines <= 400, "{} has {lines} lines", shown(&source.path));
        }
    }
}

/// cargo chooses a `syn` for each of the two by itself, whenever something else in the lock changes; of two kinds, they
/// do not compile, and only the build with feature `fips` has them.
#[test]
fn the_lock_holds_what_feature_fips_is_built_with_together() {
    let lock = fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let syn_of = |name: &str| {
        let package =
            lock.split("[[package]]").find(|package| package.contains(&format!("name = \"{name}\""))).unwrap();
        package.lines().find(|line| line.starts_with(" \"syn")).unwrap()
    };
    assert_eq!(syn_of("bindgen"), syn_of("prettyplease"), "in Cargo.lock, give bindgen the syn of prettyplease");
}
