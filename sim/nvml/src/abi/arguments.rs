//! Owns the pointers that callers pass: the one place where memory of the caller is touched.
//!
//! Each type is a C pointer to the caller's eyes (`repr(transparent)`) and comes into being only
//! as an argument of an exported call, so the promise that NVML's documentation makes for the
//! caller holds for it: null, or good for as much as the call's other arguments say.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

use crate::status::{Answer, Failure};

/// Where a result goes, or a structure that is read and then filled in.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

/// An array that the caller provides; how long it is stands in another argument.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct List<T>(*mut T);

/// A buffer for text.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Text(*mut c_char);

/// Text from the caller.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Name(*const c_char);

impl<T> Out<T> {
    pub(super) fn put(&self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Failure::INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by the module's promise good for writing one T.
        unsafe { self.0.write(value) };
        Ok(())
    }

    pub(super) fn get(&self) -> Result<T, Failure>
    where
        T: Copy,
    {
        if self.0.is_null() {
            return Err(Failure::INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by the module's promise good for reading one T.
        Ok(unsafe { self.0.read() })
    }

    /// The array that follows it in memory, where a structure ends in one.
    pub(super) fn tail<F>(&self) -> List<F> {
        if self.0.is_null() {
            return List(std::ptr::null_mut());
        }
        List(self.0.wrapping_add(1).cast())
    }
}

impl<T> List<T> {
    /// A pointer that stood in a structure of the caller's.
    pub(super) fn from_structure(pointer: *mut T) -> Self {
        Self(pointer)
    }

    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Its place at an index, which the call's other arguments say it has.
    pub(super) fn place(&self, index: usize) -> Out<T> {
        if self.0.is_null() {
            return Out(self.0);
        }
        // SAFETY: by the module's promise the array has this place.
        Out(unsafe { self.0.add(index) })
    }

    /// NVML's protocol for lists: `count` says how much fits and is told how much there is;
    /// too little room is INSUFFICIENT_SIZE and writes nothing.
    pub(super) fn put_all(&self, count: &Out<u32>, values: Vec<T>) -> Answer {
        let fits = count.get()?;
        count.put(values.len() as u32)?;
        if values.is_empty() {
            return Ok(());
        }
        if self.is_null() || (fits as usize) < values.len() {
            return Err(Failure::INSUFFICIENT_SIZE);
        }
        values.into_iter().enumerate().try_for_each(|(index, value)| self.place(index).put(value))
    }
}

impl Text {
    /// Writes text and its end; `length` is the buffer's size.
    pub(super) fn put(&self, length: u32, text: &str) -> Answer {
        if self.0.is_null() {
            return Err(Failure::INVALID_ARGUMENT);
        }
        if text.len() >= length as usize {
            return Err(Failure::INSUFFICIENT_SIZE);
        }
        // SAFETY: not null, and by the module's promise good for `length` bytes, of which text
        // and end take no more.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

impl Name {
    pub(super) fn get(&self) -> Result<&str, Failure> {
        if self.0.is_null() {
            return Err(Failure::INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by the module's promise text with an end.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| Failure::INVALID_ARGUMENT)
    }
}

/// Text as the fixed array of a C structure, cut to fit.
pub(super) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (place, byte) in array.iter_mut().zip(text.bytes().take(N - 1)) {
        *place = byte as c_char;
    }
    array
}
