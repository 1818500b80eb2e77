//! A parsed value for the references, built by serde_json and read with serde.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapDeserializer},
};

/// A JSON value that keeps what serde_json's own loses: the order of members and duplicates.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Build;
        impl<'de> Visitor<'de> for Build {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Unsigned(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Signed(value))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                }
                Ok(Json::Array(elements))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Json::Object(members))
            }
        }
        deserializer.deserialize_any(Build)
    }
}

impl Json {
    /// The last member called `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        let Json::Object(members) = self else {
            return None;
        };
        members
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        let Json::Object(members) = self else {
            return 0;
        };
        members.iter().filter(|(key, _)| key == name).count()
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        if let Json::Text(text) = self.get(name)? {
            Some(text)
        } else {
            None
        }
    }

    pub(crate) fn array(&self, name: &str) -> Option<&Json> {
        self.get(name)
            .filter(|value| matches!(value, Json::Array(_)))
    }

    pub(crate) fn id(&self, name: &str) -> Option<Result<i64, &str>> {
        let value = self.get(name)?;
        if let Json::Text(text) = value {
            return Some(Err(text));
        }
        let Ok(id) = i64::deserialize(value.clone()) else {
            return None;
        };
        Some(Ok(id))
    }

    /// Each key once, where it first stood, with its last value: what the CLI's map holds.
    pub(crate) fn members(&self) -> Vec<(String, Json)> {
        let Json::Object(members) = self else {
            return Vec::new();
        };
        let mut unique = Vec::<(String, Json)>::new();
        for (key, value) in members {
            match unique.iter_mut().find(|(known, _)| known == key) {
                Some((_, old)) => *old = value.clone(),
                None => unique.push((key.clone(), value.clone())),
            }
        }
        unique
    }

    pub(crate) fn has_duplicates(&self) -> bool {
        let Json::Object(members) = self else {
            return false;
        };
        self.members().len() != members.len()
    }
}

/// Lets serde's derived code read a [`Json`] with serde_json's error texts.
impl<'de> Deserializer<'de> for Json {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(value),
            Json::Unsigned(value) => visitor.visit_u64(value),
            Json::Signed(value) => visitor.visit_i64(value),
            Json::Float(value) => visitor.visit_f64(value),
            Json::Text(value) => visitor.visit_string(value),
            Json::Array(elements) => {
                let length = elements.len();
                let mut rest = elements.into_iter();
                let mut access = de::value::SeqDeserializer::new(rest.by_ref());
                let value = visitor.visit_seq(&mut access)?;
                if rest.len() == 0 {
                    Ok(value)
                } else {
                    Err(de::Error::invalid_length(
                        length,
                        &"fewer elements in array",
                    ))
                }
            }
            Json::Object(_) => visitor.visit_map(MapDeserializer::new(self.members().into_iter())),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self == Json::Null {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> de::IntoDeserializer<'de, serde_json::Error> for Json {
    type Deserializer = Json;
    fn into_deserializer(self) -> Json {
        self
    }
}
