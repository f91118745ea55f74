//! `ringcentral.phone-number`: a contact-center phone number was created, updated or deleted.
//!
//! This event has no OpenAPI schema. Its only documentation is the guide's page "Contact Center Phone
//! Number" with one sample. Members of the REST resource that the page does not mention (`label`,
//! `primary`, `extension`, `tollType`, ...) are kept in `others`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Envelope, HasOwner, extension::text, filter::Filter};
use crate::event::{
    E164, EventFamily, Key, LenientString, Topic, distinct::distinct, open_enum::open_enum,
};

/// One event.
pub type Event = Envelope<Body>;

/// A change of a phone number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// The change.
    pub event_type: Option<EventType>,
    /// The number. The guide does not say which members a deleted number has.
    pub phone_number_info: PhoneNumberInfo,
    /// The extension that owns the subscription, if the envelope does not name it.
    pub owner_id: Option<LenientString>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

open_enum! {
    /// A change of a number (guide). In the past tense, unlike those of extensions.
    pub enum EventType {
        /// A new number was first assigned to the contact center.
        Created,
        /// Either of two opposite changes: a number became a contact-center number, or a number was moved
        /// away from the contact center. Read the number again to find out which.
        Updated,
        /// A contact-center number was deleted.
        Deleted,
    }
}

/// A phone number (guide; open values from the REST resource `CompanyPhoneNumberInfo`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhoneNumberInfo {
    /// The URI of the number's resource.
    pub uri: Option<LenientString>,
    /// The number's id: a string in the guide, a number in the REST API.
    pub id: Option<LenientString>,
    /// The number as it was written: E.164 by the guide. `e164` parses it.
    pub phone_number: Option<LenientString>,
    /// How the number is paid for.
    pub payment_type: Option<PaymentType>,
    /// City and state; only for local numbers in the USA.
    pub location: Option<LenientString>,
    /// What the number carries.
    #[serde(rename = "type")]
    pub number_type: Option<NumberType>,
    /// What the number is used for. The guide does not say whether a number that is moved away from the
    /// contact center has its new use here.
    pub usage_type: Option<UsageType>,
    /// Whether the number is in service.
    pub status: Option<Status>,
    /// The provider of the contact center; `1` if absent (OpenAPI). A value that is not an object reads as
    /// absent.
    #[serde(default, deserialize_with = "object_or_absent")]
    #[schemars(schema_with = "object_or_anything")]
    pub contact_center_provider: Option<ContactCenterProvider>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// The provider of a contact center (guide).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContactCenterProvider {
    /// Its id.
    pub id: Option<LenientString>,
    /// Its name.
    pub name: Option<LenientString>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

open_enum! {
    /// How a number is paid for (OpenAPI; a free string in the guide).
    pub enum PaymentType {
        /// Provided by RingCentral with a local area code.
        Local,
        /// Provided by RingCentral, free to the caller.
        TollFree,
        /// Not provided by RingCentral.
        External,
        /// A mobile number of a business mobile provider.
        BusinessMobileNumberProvider,
        /// Provided by another provider.
        ExternalNumberProvider,
        /// Provided by another provider, free to the caller.
        ExternalNumberProviderTollFree,
        /// A mobile number.
        Mobile,
    }
}

open_enum! {
    /// What a number carries. The guide writes `Voice` and `Fax`, OpenAPI `VoiceOnly` and
    /// `FaxOnly`.
    pub enum NumberType {
        /// Calls (guide).
        Voice,
        /// Calls (OpenAPI).
        VoiceOnly,
        /// Faxes (guide).
        Fax,
        /// Faxes (OpenAPI).
        FaxOnly,
        /// Calls and faxes (guide and OpenAPI).
        VoiceFax,
    }
}

open_enum! {
    /// What a number is used for. The guide has `ContactCenterNumber` only. The others are from the REST
    /// resource: a number may be moved to them.
    pub enum UsageType {
        /// The contact center.
        ContactCenterNumber,
        /// The company's main number.
        MainCompanyNumber,
        /// Another number of the company.
        AdditionalCompanyNumber,
        /// A number of the company.
        CompanyNumber,
        /// One extension.
        DirectNumber,
        /// The company's fax.
        CompanyFaxNumber,
        /// Forwarding to an extension.
        ForwardedNumber,
        /// Forwarding to the company.
        ForwardedCompanyNumber,
        /// Conferences.
        ConferencingNumber,
        /// Meetings.
        MeetingsNumber,
        /// A pool of numbers.
        NumberPool,
        /// Numbers that are stored.
        NumberStorage,
        /// No use at present.
        Inventory,
        /// A phone line.
        PhoneLine,
        /// A mobile number.
        BusinessMobileNumber,
        /// A mobile number under fixed-mobile convergence.
        FmcBusinessMobileNumber,
        /// A mobile number from a partner.
        PartnerBusinessMobileNumber,
        /// A mobile number from a partner, in a pool.
        NumberPoolPartnerBusinessMobileNumber,
        /// A mobile number without a user.
        InventoryMobileNumber,
        /// A mobile number under fixed-mobile convergence without a user.
        InventoryFmcBusinessMobileNumber,
        /// A mobile number from a partner without a user.
        InventoryPartnerBusinessMobileNumber,
        /// Another product.
        IntegrationNumber,
        /// The location of an emergency call.
        ELIN,
    }
}

open_enum! {
    /// Whether a number is in service (OpenAPI; a free string in the guide).
    pub enum Status {
        /// It is in service.
        Normal,
        /// It is being ported.
        Pending,
        /// It has been ported in.
        PortedIn,
        /// It is a temporary number.
        Temporary,
        /// RingCentral does not know.
        Unknown,
    }
}

impl PhoneNumberInfo {
    /// The number in E.164, if it can be parsed.
    pub fn e164(&self) -> Option<E164> {
        E164::read(self.phone_number.as_deref()?)
    }
}

/// One member of a wrong type does not make the whole event unreadable.
fn object_or_absent<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ContactCenterProvider>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(ContactCenterProvider::deserialize(value).ok())
}

/// The schema of what [`object_or_absent`] accepts.
fn object_or_anything(generator: &mut SchemaGenerator) -> Schema {
    let object = generator.subschema_for::<ContactCenterProvider>();
    json_schema!({ "anyOf": [object, true] })
}

impl HasOwner for Body {
    fn owner_id(&self) -> Option<&LenientString> {
        self.owner_id.as_ref()
    }
}

impl EventFamily for Event {
    const NAME: &'static str = "ringcentral.phone-number";
    const CHANGES: &'static [(&'static str, &'static str)] = &[
        (
            "created",
            "A new number was first assigned to the contact center.",
        ),
        (
            "updated",
            "A number became a contact-center number, or was moved away from the contact center.",
        ),
        ("deleted", "A contact-center number was deleted."),
    ];
    const EXAMPLE: &'static str =
        include_str!("../../../fixtures/ringcentral/phone-number/a-number-was-created.json");

    /// The filter `/restapi/v1.0/account/{a}/phone-number?usageType=ContactCenterNumber`. A filter for other
    /// usage types is not claimed. A filter without a usage type is: known notifications repeat the query,
    /// but nothing promises it, and no other event has this path.
    fn claims(event: &str) -> bool {
        let Some(filter) = Filter::parse(event) else {
            return false;
        };
        let usage_types: Vec<_> = filter.values("usageType").collect();
        filter.path == ["phone-number"]
            && (usage_types.is_empty() || usage_types.contains(&"ContactCenterNumber"))
    }

    fn change(&self) -> Option<&'static str> {
        match self.body.event_type.as_ref()? {
            EventType::Created => Some("created"),
            EventType::Updated => Some("updated"),
            EventType::Deleted => Some("deleted"),
            EventType::Other(_) => None,
        }
    }

    /// The number's id; without one, the number itself.
    fn key(&self) -> Option<Key> {
        let number = &self.body.phone_number_info;
        let id = number.id.as_deref().filter(|id| !id.is_empty());
        let number = || Some(self.body.phone_number_info.e164()?.to_string());
        let id = id.map(str::to_owned).or_else(number)?;
        Some(Key::of(&[Self::NAME, "/", &id]))
    }

    /// The number, and the id and the number of its extension if the body has them.
    fn subjects(&self) -> Vec<String> {
        let info = &self.body.phone_number_info;
        let Some(number) = info.e164() else {
            return Vec::new();
        };
        let extension = info.others.get("extension");
        let of_extension = ["id", "extensionNumber"]
            .into_iter()
            .filter_map(|member| text(extension?.get(member)?));
        distinct([number.to_string()].into_iter().chain(of_extension))
    }

    fn occurred_at(&self) -> Option<Timestamp> {
        self.sent_at()
    }

    /// The number: each event has the whole number.
    fn topics(&self, key: &Key, _: &'static str) -> Vec<Topic> {
        vec![Topic::new(key.as_str())]
    }
}

#[cfg(test)]
mod tests {
    use super::Event;
    use crate::event::EventFamily;

    #[test]
    fn the_contact_center_filter_is_claimed_with_any_form_of_account_id() {
        for event in [
            "/restapi/v1.0/account/4051563/phone-number?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/phone-number?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/{accountId}/phone-number?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/phone-number?page=1&usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/phone-number?usageType=DirectNumber&usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/phone-number",
            "/restapi/v1.0/account/~/phone-number?",
        ] {
            assert!(Event::claims(event), "{event}");
        }
    }

    #[test]
    fn other_filters_are_not_claimed() {
        for event in [
            "/restapi/v1.0/account/~/phone-number?usageType=DirectNumber",
            "/restapi/v1.0/account/~/phone-number?usageType=",
            "/restapi/v1.0/account/~/phone-number/987654?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/phone-number/",
            "/restapi/v1.0/account/~/extension/12/phone-number?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/phone-numbers?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/phone-number?usageType=ContactCenterNumber",
            "/restapi/v1.0/account/~/extension/12",
            "",
        ] {
            assert!(!Event::claims(event), "{event}");
        }
    }
}
