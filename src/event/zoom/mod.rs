//! What Zoom says.
pub mod number_management;
