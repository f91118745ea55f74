//! What RingCentral says.
pub mod extension_info;
pub mod phone_number;
