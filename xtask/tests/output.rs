// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the commands print, as their callers see it.

use std::process::{Command, Stdio};

#[test]
fn nothing_is_reported_when_the_reader_leaves() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut list = Command::new(env!("CARGO_BIN_EXE_xtask"));
    list.arg("list").stdout(writer).stderr(Stdio::piped());
    let done = list.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
    assert!(!done.status.success(), "but not all was printed");
}
