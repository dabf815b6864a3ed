// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use std::fs;

/// The circles of a crate with these files.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    circles_in(folder.path()).expect("Rust")
}

#[test]
fn a_circle_is_named_with_what_ties_it() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::two; pub fn one() { two() }"),
        ("b.rs", "pub fn two() { crate::c::three() }"),
        ("c.rs", "pub fn three() { println!(\"{}\", crate::a::one()) }"),
    ];
    let [circle] = &found(&files)[..] else { panic!("one") };
    assert!(circle.starts_with("a circle of 3 files"), "{circle}");
    for arrow in ["a.rs → ", "b.rs: two", "c.rs → ", "a.rs: one"] {
        assert!(circle.contains(arrow), "{arrow} in {circle}");
    }
    let files = [files[0], files[1], files[2], ("c.rs", "pub fn three() {}")];
    assert_eq!(found(&files), [""; 0]);
}

#[test]
fn a_child_may_use_its_parent() {
    let family = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod child; pub struct A; pub use child::Child;"),
        ("a/child.rs", "use super::A; pub struct Child(A);"),
        ("b.rs", "use crate::a::A; pub struct B(A);"),
    ];
    assert_eq!(found(&family), [""; 0]);
}

#[test]
fn a_re_export_is_followed_to_where_the_thing_is() {
    // By their parent the two children use each other.
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod one; mod two; pub use one::*; pub use two::Two as Second;"),
        ("a/one.rs", "pub struct One(super::Second);"),
        ("a/two.rs", "use super::One; pub struct Two(Option<Box<One>>);"),
    ];
    let [circle] = &found(&files)[..] else { panic!("one") };
    assert!(circle.starts_with("a circle of 2 files"), "{circle}");
}

#[test]
fn tests_other_crates_and_blocks_do_not_count() {
    let files = [
        ("lib.rs", "mod a; mod b; mod inner { pub fn f() { super::a::f() } }"),
        ("a.rs", "pub fn f() {} #[cfg(test)] mod tests { use crate::b::g; #[test] fn t() { g() } }"),
        (
            "b.rs",
            "use std::fmt; use core::a::f as h; pub fn g() { crate::a::f() } #[cfg(test)] use crate::a::f;",
        ),
    ];
    assert_eq!(found(&files), [""; 0]);
}

#[test]
fn the_path_of_a_module_is_where_the_attribute_says() {
    let files = [
        ("main.rs", "#[path = \"x86.rs\"] mod arch; mod b;"),
        ("x86.rs", "pub fn f() { crate::b::g() }"),
        ("b.rs", "pub fn g() { crate::arch::f() }"),
    ];
    let [circle] = &found(&files)[..] else { panic!("one") };
    assert!(circle.contains("x86.rs"), "{circle}");
}

#[test]
fn a_re_export_takes_nothing_unless_it_is_used() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod child; pub use child::Child; pub struct A;"),
        ("a/child.rs", "use crate::b::B; pub struct Child(B);"),
        ("b.rs", "use crate::a::A; pub struct B(A);"),
    ];
    assert_eq!(found(&files), [""; 0]);
    let uses = "mod child; pub use child::Child; pub struct A(Option<Child>);";
    assert_eq!(found(&[files[0], ("a/mod.rs", uses), files[2], files[3]]).len(), 1);
}
