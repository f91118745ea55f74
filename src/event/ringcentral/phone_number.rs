//! `ringcentral.phone-number`: a contact-center phone number came, changed or went.
//!
//! There is no OpenAPI schema of this event: the guide's page "Contact Center Phone Number" and its
//! one sample are all that is documented. Members of the REST resource that the page does not
//! mention (`label`, `primary`, `extension`, `tollType`, ...) are kept in `others`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Envelope, Owned, filter::Filter};
use crate::event::{E164, EventFamily, Key, Text, Topic, open_enum::open_enum};

/// One event.
pub type Event = Envelope<Body>;

/// What is said of a phone number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// What happened to it.
    pub event_type: Option<EventType>,
    /// The number. Which of its members are there for a deleted one is not documented.
    pub phone_number_info: PhoneNumberInfo,
    /// The extension that owns the subscription, where it is not said in the envelope.
    pub owner_id: Option<Text>,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

open_enum! {
    /// What happened to the number (guide). In the past tense, unlike the extension events.
    pub enum EventType {
        /// A new number was first assigned to the contact center.
        Created,
        /// Two opposite things: a number became a contact-center number, or one was moved away
        /// from the contact center. Read the number again to tell which.
        Updated,
        /// A contact-center number was deleted.
        Deleted,
    }
}

/// A phone number (guide; open values from the REST resource `CompanyPhoneNumberInfo`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhoneNumberInfo {
    /// The canonical URI of the number's resource.
    pub uri: Option<Text>,
    /// The id of the number, a string in the guide and a number in the REST API.
    pub id: Option<Text>,
    /// The number as it was written, E.164 by the guide; `e164` makes sure of it.
    pub phone_number: Option<Text>,
    /// How it is paid for.
    pub payment_type: Option<PaymentType>,
    /// City and state; filled for local numbers in the USA only.
    pub location: Option<Text>,
    /// What it carries.
    #[serde(rename = "type")]
    pub kind: Option<Kind>,
    /// What it is used for. Whether a number that moves away from the contact center shows its new
    /// use here is not documented.
    pub usage_type: Option<UsageType>,
    /// Whether it is in service.
    pub status: Option<Status>,
    /// Who runs the contact center; provider `1` where it is not said (OpenAPI). A value that is
    /// not an object reads as absent.
    #[serde(default, deserialize_with = "object_or_absent")]
    #[schemars(schema_with = "object_or_anything")]
    pub contact_center_provider: Option<ContactCenterProvider>,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// Who runs a contact center (guide).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContactCenterProvider {
    /// Its id.
    pub id: Option<Text>,
    /// Its name.
    pub name: Option<Text>,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

open_enum! {
    /// How a number is paid for (OpenAPI; the guide has a free string).
    pub enum PaymentType {
        /// Provided by RingCentral with a local area code.
        Local,
        /// Provided by RingCentral, free to the caller.
        TollFree,
        /// Not provided by RingCentral.
        External,
        /// A mobile number of a business mobile provider.
        BusinessMobileNumberProvider,
        /// Of another provider.
        ExternalNumberProvider,
        /// Of another provider, free to the caller.
        ExternalNumberProviderTollFree,
        /// A mobile number.
        Mobile,
    }
}

open_enum! {
    /// What a number carries. The guide writes `Voice` and `Fax`, OpenAPI `VoiceOnly` and
    /// `FaxOnly`.
    pub enum Kind {
        /// Calls (guide).
        Voice,
        /// Calls (OpenAPI).
        VoiceOnly,
        /// Faxes (guide).
        Fax,
        /// Faxes (OpenAPI).
        FaxOnly,
        /// Both (both).
        VoiceFax,
    }
}

open_enum! {
    /// What a number is used for. The guide knows `ContactCenterNumber` only; the others are those
    /// of the REST resource that a number may be moved to.
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
        /// Nothing at present.
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
        /// A mobile number that nobody has at present.
        InventoryMobileNumber,
        /// A mobile number under fixed-mobile convergence that nobody has at present.
        InventoryFmcBusinessMobileNumber,
        /// A mobile number from a partner, that nobody has at present.
        InventoryPartnerBusinessMobileNumber,
        /// Another product.
        IntegrationNumber,
        /// Saying where an emergency call comes from.
        ELIN,
    }
}

open_enum! {
    /// Whether a number is in service (OpenAPI; the guide has a free string).
    pub enum Status {
        /// It is.
        Normal,
        /// It is on its way in or out.
        Pending,
        /// It has been ported in.
        PortedIn,
        /// It stands in for another.
        Temporary,
        /// RingCentral cannot tell.
        Unknown,
    }
}

impl PhoneNumberInfo {
    /// The number in E.164, if it is one.
    pub fn e164(&self) -> Option<E164> {
        E164::read(self.phone_number.as_deref()?)
    }
}

/// One member of a wrong type is no reason to call a whole event unreadable.
fn object_or_absent<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ContactCenterProvider>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(ContactCenterProvider::deserialize(value).ok())
}

/// What [`object_or_absent`] accepts.
fn object_or_anything(generator: &mut SchemaGenerator) -> Schema {
    let object = generator.subschema_for::<ContactCenterProvider>();
    json_schema!({ "anyOf": [object, true] })
}

impl Owned for Body {
    fn owner_id(&self) -> Option<&Text> {
        self.owner_id.as_ref()
    }
}

impl EventFamily for Event {
    const NAME: &'static str = "ringcentral.phone-number";
    const CHANGES: &'static [&'static str] = &["created", "updated", "deleted"];
    const EXAMPLE: &'static str =
        include_str!("../../../fixtures/ringcentral/phone-number/a-number-was-created.json");

    /// The filter `/restapi/v1.0/account/{a}/phone-number?usageType=ContactCenterNumber`. A filter
    /// for other usage types only is not ours. One that names none is: the query has been kept in
    /// every notification seen, but nothing promises it, no other event has this path, and what is
    /// not claimed reaches no handler of this family.
    fn claims(event: &str) -> bool {
        let Some(filter) = Filter::read(event) else {
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
        let id = id.map(str::to_owned).or_else(|| self.subject())?;
        Some(Key::of(&[Self::NAME, "/", &id]))
    }

    fn subject(&self) -> Option<String> {
        Some(self.body.phone_number_info.e164()?.to_string())
    }

    fn occurred_at(&self) -> Option<Timestamp> {
        self.sent_at()
    }

    /// The number: each event says all there is to say of it.
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
