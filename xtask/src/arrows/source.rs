// SPDX-License-Identifier: MIT OR Apache-2.0
//! The modules of a crate, as its files say them.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta, Token};

/// One module: a file, or a block in one.
pub struct Module {
    /// The module that it is declared in; the root is its own.
    pub parent: usize,
    /// Its name in there.
    pub name: String,
    /// The file that it stands in.
    pub file: usize,
    /// What it holds, modules and test code left out.
    pub items: Vec<Item>,
}

/// A crate without its tests.
pub struct Crate {
    /// The root first.
    pub modules: Vec<Module>,
    /// Every file, with the module that it is.
    pub files: Vec<(PathBuf, usize)>,
}

impl Crate {
    /// Reads `main.rs` or `lib.rs` of that folder, and what it declares.
    ///
    /// # Errors
    /// When a file cannot be read, or is not Rust.
    pub fn read(folder: &Path) -> Result<Self> {
        let root = ["lib.rs", "main.rs"].map(|name| folder.join(name)).into_iter().find(|path| path.exists());
        let root = root.with_context(|| format!("{} has no lib.rs or main.rs", folder.display()))?;
        let mut tree = Self { modules: Vec::new(), files: Vec::new() };
        tree.file(&root, folder, 0, String::new())?;
        Ok(tree)
    }

    /// The nearest module that is a whole file.
    pub fn file_of(&self, module: usize) -> usize {
        self.modules[module].file
    }

    /// Reads one file; `folder` is where its children are.
    fn file(&mut self, path: &Path, folder: &Path, parent: usize, name: String) -> Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let parsed = syn::parse_file(&text).with_context(|| format!("{} is not Rust", path.display()))?;
        let file = self.files.len();
        self.files.push((path.to_path_buf(), self.modules.len()));
        self.block(parsed.items, path, folder, parent, name, file)
    }

    fn block(
        &mut self,
        items: Vec<Item>,
        path: &Path,
        folder: &Path,
        parent: usize,
        name: String,
        file: usize,
    ) -> Result<()> {
        let this = self.modules.len();
        let (modules, items): (Vec<Item>, Vec<Item>) = items
            .into_iter()
            .filter(|item| !attributes(item).iter().any(is_test))
            .partition(|item| matches!(item, Item::Mod(_)));
        self.modules.push(Module { parent, name, file, items });
        for item in modules {
            let Item::Mod(ItemMod { ident, attrs, content, .. }) = item else { continue };
            let name = ident.to_string();
            if let Some((_, items)) = content {
                self.block(items, path, &folder.join(&name), this, name, file)?;
                continue;
            }
            let beside = path.parent().unwrap_or(folder);
            let places = match attrs.iter().find_map(path_of) {
                Some(named) => vec![(beside.join(named), folder.join(&name))],
                None => vec![
                    (folder.join(format!("{name}.rs")), folder.join(&name)),
                    (folder.join(&name).join("mod.rs"), folder.join(&name)),
                ],
            };
            let (child, below) = places
                .into_iter()
                .find(|(child, _)| child.exists())
                .with_context(|| format!("{} declares `{name}`, which has no file", path.display()))?;
            self.file(&child, &below, this, name)?;
        }
        Ok(())
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[test]`, or a `#[cfg]` that asks for tests or for the feature that gives other crates' tests what they need.
pub fn is_test(attribute: &Attribute) -> bool {
    fn asks(meta: &Meta) -> bool {
        match meta {
            Meta::Path(path) => path.is_ident("test"),
            Meta::NameValue(pair) => {
                pair.path.is_ident("feature")
                    && matches!(&pair.value, Expr::Lit(ExprLit { lit: Lit::Str(name), .. }) if name.value() == "testing")
            }
            Meta::List(list) if list.path.is_ident("not") => false,
            Meta::List(list) => list
                .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
                .is_ok_and(|parts| parts.iter().any(asks)),
        }
    }
    let path = attribute.path();
    path.is_ident("test") || path.is_ident("cfg") && asks(&attribute.meta)
}

fn path_of(attribute: &Attribute) -> Option<String> {
    match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(name), .. }) => Some(name.value()),
            _ => None,
        },
        _ => None,
    }
}
