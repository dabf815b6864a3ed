// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the configuration says of PASIDs.

/// Among whose attachments a number is leased once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NamespaceScope {
    /// Among those of all devices.
    Host,
    /// Among those of one device.
    Device,
}
