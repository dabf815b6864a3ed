// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processors that Bochs has and tests use.

use std::ffi::CStr;

/// How many there are.
pub(crate) const MODELS: usize = 2;

/// The processors there are to run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Model {
    /// AMD's, with SVM and nested paging, ASIDs and next-RIP save; no decode assists.
    Ryzen,
    /// Intel's, with VMX, EPT and VPIDs.
    SapphireRapids,
}

impl Model {
    /// Bochs's name of it, and what it has besides.
    ///
    /// x2APIC and MOVDIR64B, which later Ryzens have. AVX-512, as well: the C library chooses its string functions by the processor that
    /// the test was started on.
    pub(crate) const fn name(self) -> (&'static CStr, &'static CStr) {
        match self {
            Model::Ryzen => (c"ryzen", c"x2apic,movdir64b,avx512,avx512dq,avx512bw,avx512cd"),
            Model::SapphireRapids => (c"sapphire_rapids", c""),
        }
    }
}
