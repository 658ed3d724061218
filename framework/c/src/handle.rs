//! Pointers of C, made into references: the one place where that is done. The rules are those at the top of the header.

use std::ffi::{CStr, CString, c_char};

/// An argument that can be seen to be wrong: how.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) &'static CStr);

type Result<T> = std::result::Result<T, Wrong>;

/// A handle to give away: [`free`] takes it back.
pub(crate) fn give<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// What a handle stands for, for one call.
///
/// # Safety
/// Null, or from [`give`] and not freed (rule 1); nobody uses it exclusively meanwhile (rule 2).
pub(crate) unsafe fn get<'a, T>(handle: *const T) -> Result<&'a T> {
    check(handle, c"a handle is NULL")?;
    // SAFETY: not null, aligned, and the rest is the caller's word.
    Ok(unsafe { &*handle })
}

/// The same, or what is to be filled in, exclusively.
///
/// # Safety
/// As [`get`], or writable memory of C (rule 3); nobody else uses it meanwhile (rule 2).
pub(crate) unsafe fn get_mut<'a, T>(handle: *mut T) -> Result<&'a mut T> {
    check(handle, c"a handle, or a place to fill in, is NULL")?;
    // SAFETY: not null, aligned, and the rest is the caller's word.
    Ok(unsafe { &mut *handle })
}

/// Ends a handle; null is none.
///
/// # Safety
/// Null, or from [`give`] and not freed (rule 1); nobody uses it meanwhile (rule 2).
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: `give` made it from a box, and this is the one time that it is taken back.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// A plain structure of C's, copied; `None` for null.
///
/// # Safety
/// Null, or a structure that can be read (rule 3). Every pattern of bits is a value of `T`, but for `bool`s, which C makes 0 or 1.
pub(crate) unsafe fn copy<T: Copy>(place: *const T) -> Result<Option<T>> {
    if place.is_null() {
        return Ok(None);
    }
    check(place, c"")?;
    // SAFETY: not null, aligned, and readable by the caller's word.
    Ok(Some(unsafe { place.read() }))
}

/// Fills in a place, which may be memory that nobody wrote yet.
///
/// # Safety
/// Null, or a place that can be written (rule 3).
pub(crate) unsafe fn fill<T: Copy>(place: *mut T, value: T) -> Result<()> {
    check(place, c"a place to fill in is NULL")?;
    // SAFETY: not null, aligned, and writable by the caller's word.
    unsafe { place.write(value) };
    Ok(())
}

/// Places to fill in, one after the other: an array of C's.
pub(crate) struct Out<T> {
    array: *mut T,
    len: usize,
    filled: usize,
}

impl<T: Copy> Out<T> {
    /// # Safety
    /// `len` elements that can be written (rule 3) while this is used; null where `len` is 0.
    pub(crate) unsafe fn new(array: *mut T, len: usize) -> Result<Self> {
        if len > 0 {
            check(array, c"an array is NULL")?;
        }
        Ok(Self { array, len, filled: 0 })
    }

    /// How many more there are.
    pub(crate) fn room(&self) -> usize {
        self.len - self.filled
    }

    /// Fills in the next; says whether there was one.
    pub(crate) fn push(&mut self, value: T) -> bool {
        let room = self.filled < self.len;
        if room {
            // SAFETY: below `len`, so inside of the array that `new` was told of.
            unsafe { self.array.add(self.filled).write(value) };
            self.filled += 1;
        }
        room
    }

    /// How many were filled in.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }
}

/// An array of C's, to read.
///
/// # Safety
/// `len` elements that can be read, and that nobody writes (rule 3); null where `len` is 0.
pub(crate) unsafe fn array<'a, T>(array: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check(array, c"an array is NULL")?;
    if len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Wrong(c"an array has more elements than memory"));
    }
    // SAFETY: not null, aligned, no larger than a slice may be, and the rest is the caller's word.
    Ok(unsafe { std::slice::from_raw_parts(array, len) })
}

/// Text of C's.
///
/// # Safety
/// Null, or text that ends with NUL (rule 3).
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a str> {
    check(text, c"a text is NULL")?;
    // SAFETY: not null, and it ends by the caller's word.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Wrong(c"a text is not UTF-8"))
}

/// Text for C, which lasts as long as its owner.
pub(crate) fn owned(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

fn check<T>(pointer: *const T, null: &'static CStr) -> Result<()> {
    if pointer.is_null() {
        Err(Wrong(null))
    } else if !pointer.is_aligned() {
        Err(Wrong(c"a pointer is not aligned: it is none of its type"))
    } else {
        Ok(())
    }
}
