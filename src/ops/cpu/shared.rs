//! A buffer that tasks of one op write disjoint parts of.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A mutable slice lent to several tasks at once: each access vouches that no other task has the same values.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    count: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: the values may be sent between threads, and every access vouches that it is the only one.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as for `Sync`.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Lends the values.
    pub fn new(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), count: values.len(), borrowed: PhantomData }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// The first value.
    pub fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// The `count` values from `first` on.
    ///
    /// # Panics
    /// If they do not lie inside.
    ///
    /// # Safety
    /// No other task reads or writes them meanwhile, nor does this task in another way.
    #[expect(clippy::mut_from_ref, reason = "this is what the type is for; the caller vouches")]
    pub unsafe fn slice(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first <= self.count && count <= self.count - first, "values {first}.. of {}", self.count);
        // SAFETY: the values lie inside, and the caller vouches that they are this task's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }

    /// Replaces a value.
    ///
    /// # Panics
    /// If it does not lie inside.
    ///
    /// # Safety
    /// The conditions of [`SharedMut::slice`].
    pub unsafe fn set(&self, index: usize, value: T) {
        // SAFETY: as the caller vouches.
        unsafe { self.slice(index, 1)[0] = value };
    }
}

/// A slice whose values may be overwritten with uninitialised ones only by code that writes them all.
///
/// # Safety
/// Nothing uninitialised may be written through the result.
pub(crate) unsafe fn as_uninit<T>(values: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: the same layout; the caller writes initialised values only.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}
