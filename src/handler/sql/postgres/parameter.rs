//! The fields of an event as parameters of the types that the statement has.

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, Json, Kind, ToSql, Type};

use crate::handler::sql::field::{Field, Value};

/// The base type of a domain, or the type itself.
fn base(wanted: &Type) -> &Type {
    match wanted.kind() {
        Kind::Domain(of) => base(of),
        _ => wanted,
    }
}

fn is_text(wanted: &Type) -> bool {
    let texts = [
        Type::TEXT,
        Type::VARCHAR,
        Type::BPCHAR,
        Type::NAME,
        Type::UNKNOWN,
    ];
    texts.contains(wanted) || wanted.name() == "citext" || matches!(wanted.kind(), Kind::Enum(_))
}

/// Whether `field` can have the type `wanted`. See the kind's table of fields.
pub(super) fn fits(field: Field, wanted: &Type) -> bool {
    let wanted = base(wanted);
    if is_text(wanted) {
        return field != Field::Body;
    }
    let types: &[Type] = match field {
        Field::Id => &[Type::UUID],
        Field::Time | Field::ReceivedTime => &[Type::TIMESTAMPTZ],
        Field::Data | Field::Event => &[Type::JSON, Type::JSONB],
        Field::Attempt => &[Type::INT4, Type::INT8],
        Field::Superseded => &[Type::BOOL],
        Field::Body => &[Type::BYTEA],
        Field::Source
        | Field::Type
        | Field::Subject
        | Field::Key
        | Field::ReplayReason
        | Field::DataContentType => &[],
    };
    types.contains(wanted)
}

pub(super) fn unfit(field: Field, wanted: &Type) -> String {
    let name = field.name();
    let cast = match field {
        Field::Time | Field::ReceivedTime => "timestamptz",
        Field::Body => "bytea",
        _ => "text",
    };
    format!("the field :{name} cannot be had as {wanted}; cast it, as in :{name}::{cast}")
}

impl ToSql for Value {
    fn to_sql(
        &self,
        wanted: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let wanted = base(wanted);
        if is_text(wanted) {
            return self.to_text().to_sql(&Type::TEXT, out);
        }
        match self {
            Self::Text(text) => text.to_sql(wanted, out),
            Self::Id(id) => id.to_sql(wanted, out),
            Self::Time(time) => time.to_sql(wanted, out),
            Self::Json(json) => Json(json).to_sql(wanted, out),
            Self::Number(number) if *wanted == Type::INT8 => i64::from(*number).to_sql(wanted, out),
            Self::Number(number) => i32::try_from(*number)?.to_sql(wanted, out),
            Self::Flag(flag) => flag.to_sql(wanted, out),
            Self::Bytes(bytes) => bytes.as_ref().to_sql(wanted, out),
        }
    }

    /// The types were checked when the statement was prepared.
    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_fits_the_types_of_the_table() {
        for (field, wanted, expected) in [
            (Field::Id, Type::UUID, true),
            (Field::Id, Type::VARCHAR, true),
            (Field::Id, Type::INT8, false),
            (Field::Time, Type::TIMESTAMPTZ, true),
            (Field::Time, Type::TIMESTAMP, false),
            (Field::Data, Type::JSONB, true),
            (Field::Data, Type::BYTEA, false),
            (Field::Body, Type::BYTEA, true),
            (Field::Body, Type::TEXT, false),
            (Field::Attempt, Type::INT4, true),
            (Field::Attempt, Type::NUMERIC, false),
            (Field::Superseded, Type::BOOL, true),
            (Field::Subject, Type::JSON, false),
        ] {
            assert_eq!(fits(field, &wanted), expected, "{field:?} as {wanted}");
        }
        let domain = |of| Type::new("d".to_owned(), 1 << 20, Kind::Domain(of), "s".to_owned());
        assert!(fits(Field::Data, &domain(domain(Type::JSONB))));
        assert!(!fits(Field::Data, &domain(Type::BYTEA)));
    }
}
