// SPDX-License-Identifier: MIT OR Apache-2.0
//! Atomics and locks of what is used without waiting: routes, the log, the line.
//!
//! **Principle.** They are those of `core` and `spin`. In this crate's own tests what is made within [`explore`] has
//! those that loom sees, which runs the test once for each order that the memory model allows.

#[cfg(not(test))]
pub use core::hint::spin_loop;
#[cfg(not(test))]
pub use core::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(not(test))]
pub use spin::{Mutex, MutexGuard, mutex::TicketMutex};

#[cfg(test)]
pub use explored::{AtomicBool, AtomicU64, Mutex, Mutex as TicketMutex, MutexGuard, explore, spin_loop};

#[cfg(test)]
mod explored {
    use core::cell::Cell;
    use core::ops::{Deref, DerefMut};
    use core::sync::atomic::Ordering;

    std::thread_local! {
        static EXPLORING: Cell<bool> = const { Cell::new(false) };
    }

    /// How often one thread is interrupted by another in a run at most, where it could go on. Mistakes of this kind need
    /// one or two; without a bound it would take hours.
    const PREEMPTIONS: usize = 3;

    /// Runs a test once for each order of what its threads (`loom::thread`) do.
    pub fn explore(test: impl Fn() + Send + Sync + 'static) {
        let mut orders = loom::model::Builder::new();
        orders.preemption_bound = Some(PREEMPTIONS);
        EXPLORING.set(true);
        orders.check(test);
        EXPLORING.set(false);
    }

    /// Somebody else must go on first.
    pub fn spin_loop() {
        match EXPLORING.get() {
            true => loom::hint::spin_loop(),
            false => core::hint::spin_loop(),
        }
    }

    /// An atomic of that name: with `new`, as in `core`; by default, loom's where it is being explored.
    macro_rules! atomic {
        ($name:ident, $value:ty, $($operation:ident),*) => {
            #[derive(Debug)]
            pub enum $name {
                Plain(core::sync::atomic::$name),
                Explored(loom::sync::atomic::$name),
            }

            impl Default for $name {
                fn default() -> Self {
                    match EXPLORING.get() {
                        true => Self::Explored(loom::sync::atomic::$name::new(<$value>::default())),
                        false => Self::new(<$value>::default()),
                    }
                }
            }

            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self::Plain(core::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    match self {
                        Self::Plain(atomic) => atomic.load(order),
                        Self::Explored(atomic) => atomic.load(order),
                    }
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    match self {
                        Self::Plain(atomic) => atomic.store(value, order),
                        Self::Explored(atomic) => atomic.store(value, order),
                    }
                }

                $(pub fn $operation(&self, value: $value, order: Ordering) -> $value {
                    match self {
                        Self::Plain(atomic) => atomic.$operation(value, order),
                        Self::Explored(atomic) => atomic.$operation(value, order),
                    }
                })*
            }
        };
    }

    atomic!(AtomicBool, bool, swap);
    atomic!(AtomicU64, u64, swap, fetch_add);

    impl AtomicU64 {
        pub fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            match self {
                Self::Plain(atomic) => atomic.compare_exchange(current, new, success, failure),
                Self::Explored(atomic) => atomic.compare_exchange(current, new, success, failure),
            }
        }
    }

    /// A lock: with `new`, spin's; with `explored`, one that loom sees being taken and given back, where it is being
    /// explored. (Loom's own lets nobody come between two locks that are given back; who only tries one could tell.)
    pub struct Mutex<T> {
        /// Whether somebody has it.
        taken: Option<loom::sync::atomic::AtomicBool>,
        value: spin::Mutex<T>,
    }

    pub struct MutexGuard<'a, T> {
        taken: Option<&'a loom::sync::atomic::AtomicBool>,
        value: Option<spin::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub const fn new(value: T) -> Self {
            Self { taken: None, value: spin::Mutex::new(value) }
        }

        pub fn explored(value: T) -> Self {
            let taken = EXPLORING.get().then(|| loom::sync::atomic::AtomicBool::new(false));
            Self { taken, value: spin::Mutex::new(value) }
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            loop {
                match self.try_lock() {
                    Some(guard) => return guard,
                    None => spin_loop(),
                }
            }
        }

        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            if let Some(taken) = &self.taken {
                taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
            }
            Some(MutexGuard { taken: self.taken.as_ref(), value: Some(self.value.try_lock()?) })
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            self.value = None;
            if let Some(taken) = self.taken {
                taken.store(false, Ordering::Release);
            }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.value.as_ref().expect("there until it is dropped")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.value.as_mut().expect("there until it is dropped")
        }
    }
}
