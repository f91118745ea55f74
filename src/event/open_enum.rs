//! Enumerations to which a provider may add values.

/// Declares an enumeration of a provider's known values. A value is written as its variant is named. One
/// more variant keeps any other value as it was written.
macro_rules! open_enum {
    (
        $(#[doc = $doc:literal])+
        pub enum $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident,)+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $variant_doc])+ $variant,)+
            /// Any other value, as it was written.
            Other(Box<str>),
        }

        impl $name {
            /// The value as it is written.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                $(if text == stringify!($variant) {
                    return Self::$variant;
                })+
                Self::Other(text.into())
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::event::lenient_string::LenientStr::deserialize(deserializer)
                    .map(|text| Self::from(&*text.0))
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                let other = generator.subschema_for::<$crate::event::LenientString>();
                ::schemars::json_schema!({
                    "description": concat!($($doc, "\n",)+).trim(),
                    "anyOf": [
                        $({
                            "const": stringify!($variant),
                            "description": concat!($($variant_doc, "\n",)+).trim(),
                        },)+
                        other,
                    ],
                })
            }
        }
    };
}

pub(in crate::event) use open_enum;
