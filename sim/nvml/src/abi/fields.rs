//! The call for field values.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlFieldValue_t, nvmlValue_t};

use super::arguments::List;
use super::call::calls;
use crate::model::{FieldValue, Reading};
use crate::status::{Answer, Failure};

/// Fields at most in one call.
const MAX_FIELDS: i32 = 8_192;
/// Totals of ECC errors.
const ECC_TOTALS: std::ops::RangeInclusive<u32> = 3..=6;
/// Fields that driver 580 refuses in a call that also asks for fields of links: the pending ECC
/// mode and the first ECC total. Seen on an H100.
const REFUSED_BESIDE_LINKS: std::ops::RangeInclusive<u32> = 2..=3;

calls! {
    gpu fn nvmlDeviceGetFieldValues(count: i32, values: List<nvmlFieldValue_t>) |gpu| {
        if values.is_null() || !(1..=MAX_FIELDS).contains(&count) {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let mut beside_links = false;
        for index in 0..count as usize {
            beside_links |= values.place(index).get()?.scopeId != 0;
        }
        (0..count as usize).try_for_each(|index| put_field(gpu, &values, index, beside_links))
    }
}

/// A field that fails fails alone: its own return code says so.
fn put_field(gpu: &Reading<'_>, values: &List<nvmlFieldValue_t>, index: usize, beside_links: bool) -> Answer {
    let place = values.place(index);
    let asked = place.get()?;
    if !gpu.gpu.ecc && ECC_TOTALS.contains(&asked.fieldId) {
        // NVML succeeds and writes nothing: the caller finds what it left there.
        return Ok(());
    }
    let refused = beside_links && REFUSED_BESIDE_LINKS.contains(&asked.fieldId);
    let refused = refused.then_some(Failure::NOT_SUPPORTED);
    let forced = gpu.field_error(asked.fieldId).or(refused).map_or(Ok(()), Err);
    let (value_type, code, value) = match forced.and_then(|()| gpu.field(asked.fieldId, asked.scopeId)) {
        Ok(FieldValue::Double(value)) => (0, 0, nvmlValue_t { dVal: value }),
        Ok(FieldValue::UInt(value)) => (1, 0, nvmlValue_t { ullVal: value.into() }),
        Ok(FieldValue::ULongLong(value)) => (3, 0, nvmlValue_t { ullVal: value }),
        Ok(FieldValue::Int(value)) => (5, 0, nvmlValue_t { sllVal: value.into() }),
        Err(failure) => (0, failure.0, nvmlValue_t { ullVal: 0 }),
    };
    place.put(nvmlFieldValue_t {
        fieldId: asked.fieldId,
        scopeId: asked.scopeId,
        timestamp: gpu.now_us,
        latencyUsec: 0,
        valueType: value_type,
        nvmlReturn: code,
        value,
    })
}
