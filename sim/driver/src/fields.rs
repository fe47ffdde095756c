//! Reads and writes the fields of a C structure by their offsets.

/// A structure of a call, as it lies in the caller's memory.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a mut [u8]);

impl Fields<'_> {
    /// 0 where the structure is too short.
    pub(crate) fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_ne_bytes());
    }

    pub(crate) fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_ne_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What a pointer in the structure points to, `bytes` of it.
    pub(crate) fn behind(&self, at: usize, bytes: usize) -> Option<Fields<'_>> {
        let address = usize::try_from(self.u64(at)).ok().filter(|address| *address != 0)?;
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: the caller hands a pointer to what its call describes, as to the kernel.
        Some(Fields(unsafe { std::slice::from_raw_parts_mut(pointer, bytes) }))
    }
}
