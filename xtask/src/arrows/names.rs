// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a path leads to, through modules and re-exports.

use super::source::{Crate, is_test};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemUse, UseTree, Visibility};

/// What one file takes from another: by the two files' numbers, the names.
pub type Arrows = BTreeMap<(usize, usize), BTreeSet<String>>;

/// So many re-exports may lie behind each other.
const DEPTH: usize = 16;

/// Where a path ends.
#[derive(Clone, Copy)]
enum Place {
    Module(usize),
    /// Something that this module defines.
    Item(usize),
}

/// The names that each module of a crate brings in.
pub struct Names<'a> {
    tree: &'a Crate,
    scopes: Vec<Scope>,
}

#[derive(Default)]
struct Scope {
    children: BTreeMap<String, usize>,
    /// Imports, by the name that they are called here.
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Those that only others are meant to use.
    exported: BTreeSet<String>,
    /// Paths that stand in the code, from their first segment on.
    paths: BTreeSet<Vec<String>>,
}

impl<'a> Names<'a> {
    /// Collects them.
    pub fn of(tree: &'a Crate) -> Self {
        let mut scopes: Vec<Scope> = tree.modules.iter().map(|_| Scope::default()).collect();
        for (number, module) in tree.modules.iter().enumerate() {
            let mut reader = Reader(&mut scopes[number]);
            module.items.iter().for_each(|item| reader.visit_item(item));
            if number != 0 {
                scopes[module.parent].children.insert(module.name.clone(), number);
            }
        }
        Self { tree, scopes }
    }

    /// All arrows from file to file.
    pub fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (number, scope) in self.scopes.iter().enumerate() {
            let from = self.tree.file_of(number);
            // A re-export takes nothing, unless the module uses it as well.
            let used = |name: &String| {
                !scope.exported.contains(name) || scope.paths.iter().any(|path| path.first() == Some(name))
            };
            let imports = scope.imports.iter().filter(|(name, _)| used(name)).map(|(_, path)| path);
            let paths = imports.chain(&scope.globs).chain(&scope.paths);
            for path in paths {
                let Some(Place::Module(module) | Place::Item(module)) = self.resolve(number, path, DEPTH)
                else {
                    continue;
                };
                let to = self.tree.file_of(module);
                if from != to {
                    let name = path.last().cloned().unwrap_or_default();
                    arrows.entry((from, to)).or_default().insert(name);
                }
            }
        }
        arrows
    }

    /// What a path in that module leads to; `None` where that is in another crate.
    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<Place> {
        let depth = depth.checked_sub(1)?;
        let (first, rest) = path.split_first()?;
        let mut place = match first.as_str() {
            "crate" => Place::Module(0),
            "self" => Place::Module(from),
            "super" => Place::Module(self.tree.modules[from].parent),
            name => self.look_up(from, name, depth)?,
        };
        for segment in rest {
            let Place::Module(module) = place else { break };
            place = match segment.as_str() {
                "super" => Place::Module(self.tree.modules[module].parent),
                // What a macro has made has no name that can be read here.
                name => self.look_up(module, name, depth).unwrap_or(Place::Item(module)),
            };
        }
        Some(place)
    }

    /// What a module calls by that name.
    fn look_up(&self, module: usize, name: &str, depth: usize) -> Option<Place> {
        let depth = depth.checked_sub(1)?;
        let scope = &self.scopes[module];
        if let Some(child) = scope.children.get(name) {
            return Some(Place::Module(*child));
        }
        if self.tree.modules[module].items.iter().any(|item| defines(item, name)) {
            return Some(Place::Item(module));
        }
        if let Some(import) = scope.imports.get(name) {
            return self.resolve(module, import, depth);
        }
        scope.globs.iter().find_map(|glob| match self.resolve(module, glob, depth) {
            Some(Place::Module(source)) if source != module => self.look_up(source, name, depth),
            _ => None,
        })
    }
}

fn defines(item: &Item, name: &str) -> bool {
    match item {
        Item::Const(item) => item.ident == name,
        Item::Enum(item) => item.ident == name,
        Item::Fn(item) => item.sig.ident == name,
        Item::Macro(item) => item.ident.as_ref().is_some_and(|ident| ident == name),
        Item::Static(item) => item.ident == name,
        Item::Struct(item) => item.ident == name,
        Item::Trait(item) => item.ident == name,
        Item::Type(item) => item.ident == name,
        _ => false,
    }
}

/// Reads the imports and paths of a module's items.
struct Reader<'a>(&'a mut Scope);

impl Reader<'_> {
    fn import(&mut self, tree: &UseTree, path: &mut Vec<String>) {
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.import(&part.tree, path);
                path.pop();
            }
            UseTree::Name(name) if name.ident == "self" => {
                let called = path.last().cloned().unwrap_or_default();
                self.0.imports.insert(called, path.clone());
            }
            UseTree::Name(name) => {
                let whole = path.iter().cloned().chain([name.ident.to_string()]).collect();
                self.0.imports.insert(name.ident.to_string(), whole);
            }
            UseTree::Rename(name) => {
                let whole = path.iter().cloned().chain([name.ident.to_string()]).collect();
                self.0.imports.insert(name.rename.to_string(), whole);
            }
            UseTree::Glob(_) => self.0.globs.push(path.clone()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, path)),
        }
    }

    fn path(&mut self, segments: Vec<String>) {
        if !segments.is_empty() {
            self.0.paths.insert(segments);
        }
    }

    /// Paths in what a macro is given: any names with `::` between them.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.path(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                other => {
                    self.path(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.path(path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let before: BTreeSet<String> = self.0.imports.keys().cloned().collect();
        self.import(&item.tree, &mut Vec::new());
        if !matches!(item.vis, Visibility::Inherited) {
            let new = self.0.imports.keys().filter(|name| !before.contains(*name)).cloned();
            self.0.exported.extend(new.collect::<Vec<_>>());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes: &[Attribute] = match item {
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Const(item) => &item.attrs,
            _ => &[],
        };
        if !attributes.iter().any(is_test) {
            visit::visit_impl_item(self, item);
        }
    }

    // `pub(in crate::…)` takes nothing from there, and neither does an attribute.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}
