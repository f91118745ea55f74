//! Enumerations that the other side may add to.

/// Declares an enumeration of the values that a provider is known to send, each written as its
/// variant is called, with one more variant that keeps any other value as it was written.
macro_rules! open_enum {
    (
        $(#[doc = $doc:literal])+
        pub enum $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident,)+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $variant_doc])+ $variant,)+
            /// A value that is not known here, as it was written.
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
                $crate::event::text::BorrowedText::deserialize(deserializer)
                    .map(|text| Self::from(&*text.0))
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                let other = generator.subschema_for::<$crate::event::Text>();
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
