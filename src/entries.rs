//! One line for one entry: the macro behind the tables of families, providers, store engines and handler kinds.

/// Declares modules, and a table with one entry for each of them.
///
/// With `const TABLE: [Entry of Type]` the entry of a module `m` is `Entry::of::<m::Type>()`; with
/// `const TABLE: [Entry = CONSTANT]` it is `m::CONSTANT`.
///
/// A module behind `#[cfg(feature = "…")]` is in the table only where its feature is on. Where the feature
/// is off, its name is in the second table, `const OTHER: [left out]`, if there is one.
///
/// `rustfmt` does not find modules that a macro declares: `cargo fmt` needs their paths.
macro_rules! entries {
    (
        $(#[$doc:meta])*
        $visibility:vis const $table:ident: [$entry:ident of $type:ident];
        $(#[$left_out_doc:meta])*
        $left_out_visibility:vis const $left_out:ident: [left out];
        $($(#[cfg(feature = $feature:literal)])? $module_visibility:vis mod $module:ident;)+
    ) => {
        $crate::entries::entries! {
            $(#[$doc])*
            $visibility const $table: [$entry of $type];
            $($(#[cfg(feature = $feature)])? $module_visibility mod $module;)+
        }

        $(#[$left_out_doc])*
        $left_out_visibility const $left_out: &[&str] =
            &[$($(#[cfg(not(feature = $feature))] $feature,)?)+];
    };
    (
        $(#[$doc:meta])*
        $visibility:vis const $table:ident: [$entry:ident of $type:ident];
        $($(#[cfg(feature = $feature:literal)])? $module_visibility:vis mod $module:ident;)+
    ) => {
        $($(#[cfg(feature = $feature)])? $module_visibility mod $module;)+

        $(#[$doc])*
        $visibility const $table: &[$entry] =
            &[$($(#[cfg(feature = $feature)])? $entry::of::<$module::$type>(),)+];
    };
    (
        $(#[$doc:meta])*
        $visibility:vis const $table:ident: [$entry:ty = $constant:ident];
        $($module_visibility:vis mod $module:ident;)+
    ) => {
        $($module_visibility mod $module;)+

        $(#[$doc])*
        $visibility const $table: &[$entry] = &[$($module::$constant,)+];
    };
}

pub(crate) use entries;
