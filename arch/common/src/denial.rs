// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why an access of the hypervisor's own was denied, in words. Values only.

use pasidon_kernel::base::addr::PAGE_SIZE;

use crate::image::{Kind, Section};
use crate::stack::Stack;

/// Where nothing is mapped, so that a null pointer faults.
const NULL_PAGE: core::ops::Range<u64> = 0..PAGE_SIZE;

/// What lies at an address that could not be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The page below a stack of this pCPU.
    Guard,
    /// The first page.
    Null,
    /// The image's code.
    Code,
    /// The image's constants.
    Constants,
    /// Anything else.
    Other,
}

impl Target {
    /// What lies at `address`. Of the sections the first one with the address in it counts.
    pub fn of<'a>(
        address: u64,
        mut stacks: impl Iterator<Item = Stack>,
        mut sections: impl Iterator<Item = &'a Section>,
    ) -> Self {
        if stacks.any(|stack| stack.is_guard(address)) {
            return Target::Guard;
        }
        if NULL_PAGE.contains(&address) {
            return Target::Null;
        }
        let found = sections.find(|section| (section.start..section.end).contains(&address));
        match found.map(|found| found.kind) {
            Some(Kind::Code) => Target::Code,
            Some(Kind::Constants) => Target::Constants,
            _ => Target::Other,
        }
    }
}

/// What was to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Fetching an instruction.
    Execute,
}

impl Access {
    /// As a noun.
    pub fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::Execute => "execution",
        }
    }
}

/// Why, where nothing is mapped.
pub fn not_mapped(target: Target) -> &'static str {
    match target {
        Target::Null => "a null pointer",
        _ => "which is not mapped",
    }
}

/// Why, where something is mapped, but not for this.
pub fn not_allowed(access: Access, target: Target) -> &'static str {
    match (access, target) {
        (Access::Execute, _) => "which is not code: W^X violation",
        (Access::Write, Target::Code) => "which is code: W^X violation",
        (Access::Write, Target::Constants) => "which is constant: W^X violation",
        (Access::Write, _) => "which is only read",
        (Access::Read, _) => "which is not allowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_come_before_all_and_inner_sections_before_the_whole() {
        let stack = Stack { bottom: 0x9000, top: 0xd000 };
        let section = |start, end, kind| Section { start, end, kind };
        let sections = [
            section(0x2000, 0x3000, Kind::Code),
            section(0x3000, 0x4000, Kind::Data),
            section(0x1000, 0xa000, Kind::Constants),
        ];
        let of = |address| Target::of(address, [stack].into_iter(), sections.iter());
        assert_eq!(
            [0x8fff, 0x9000, 0x18, 0x2000, 0x3000, 0x1000, 0xb000].map(of),
            [
                Target::Guard,
                Target::Constants,
                Target::Null,
                Target::Code,
                Target::Other,
                Target::Constants,
                Target::Other
            ]
        );
    }
}
