// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests under both extensions, on processors that others have written. What differs is asked for by [`Extension`].

mod events;
pub(crate) mod guest;
mod instructions;
mod interrupts;
mod translations;

/// Has each of these functions be a test under each extension.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod svm {
            $(#[test]
            fn $name() {
                super::$name($crate::extension::Extension::Svm);
            })+
        }

        mod vmx {
            $(#[test]
            fn $name() {
                super::$name($crate::extension::Extension::Vmx);
            })+
        }
    };
}
pub(crate) use on_both;
