//! Listings, page by page. All pages of a listing are of one revision: the cluster as it was is kept until the
//! listing is through or abandoned, which costs only what changed since.

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prost::Message as _;
use sallyport_policy::Revision;
use sallyport_proto::{
    object::{Kind, ObjectKey},
    wire::{self, ListRequest, ListResponse},
};
use tonic::Status;

use super::convert;
use crate::{cluster::Cluster, writer::Published};

/// The most bytes of objects in a page: clients take 4 MiB, and one object is at most 1.5 MiB.
const PAGE: usize = 2 << 20;

/// How many past clusters are kept, and how long after the last page.
const KEPT: usize = 64;
const KEPT_FOR: Duration = Duration::from_secs(300);

/// The clusters of listings that are under way.
#[derive(Debug, Default)]
pub(super) struct Listings {
    kept: Mutex<BTreeMap<Revision, (Instant, Cluster)>>,
}

/// The position at which a listing goes on.
struct Token {
    revision: Revision,
    kind: Kind,
    /// The namespace that was asked for.
    within: String,
    last: ObjectKey,
}

impl Listings {
    /// One page.
    pub(super) fn page(
        &self,
        now: &Published,
        request: &ListRequest,
    ) -> Result<ListResponse, Status> {
        let kind = convert::kind(request.kind).map_err(Status::invalid_argument)?;
        if !kind.is_namespaced() && !request.namespace.is_empty() {
            return Err(Status::invalid_argument(format!(
                "namespace: a {kind} has no namespace"
            )));
        }
        let token = Token::of(request, kind)?;
        let (revision, cluster) = match &token {
            None => (now.revision, now.cluster.clone()),
            Some(token) => (token.revision, self.kept(token.revision, now)?),
        };
        let (objects, last) = fill(&cluster, kind, request, token.as_ref());
        let next = last.map(|last| Token {
            revision,
            kind,
            within: request.namespace.clone(),
            last,
        });
        if next.is_some() {
            self.keep(revision, cluster);
        }
        Ok(ListResponse {
            objects,
            revision: revision.0,
            next_page_token: next.map_or(String::new(), |token| token.to_string()),
        })
    }

    fn kept(&self, revision: Revision, now: &Published) -> Result<Cluster, Status> {
        if revision == now.revision {
            return Ok(now.cluster.clone());
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.get(&revision) {
            Some((_, cluster)) => Ok(cluster.clone()),
            None => Err(Status::out_of_range(format!(
                "page_token: revision {revision} is no longer available: list again from the start"
            ))),
        }
    }

    fn keep(&self, revision: Revision, cluster: Cluster) {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(revision, (now, cluster));
        kept.retain(|_, (used, _)| now.duration_since(*used) < KEPT_FOR);
        while kept.len() > KEPT {
            kept.pop_first();
        }
    }
}

/// The objects of a page, and the last one's key if there are more.
fn fill(
    cluster: &Cluster,
    kind: Kind,
    request: &ListRequest,
    token: Option<&Token>,
) -> (Vec<wire::Object>, Option<ObjectKey>) {
    let first = ObjectKey {
        kind,
        namespace: request.namespace.clone(),
        name: String::new(),
    };
    let last = token.map(|token| &token.last);
    let most = match request.page_size {
        0 => usize::MAX,
        most => most as usize,
    };
    let within = |key: &ObjectKey| {
        key.kind == kind && (request.namespace.is_empty() || key.namespace == request.namespace)
    };
    let rest = cluster
        .starting_at(last.cloned().unwrap_or(first))
        .skip_while(|stored| Some(&stored.object.key) == last)
        .take_while(|stored| within(&stored.object.key));
    let (mut objects, mut size) = (Vec::<wire::Object>::new(), 0);
    for stored in rest {
        let object = wire::Object::from(&**stored);
        size += object.encoded_len();
        if objects.len() == most || (size > PAGE && !objects.is_empty()) {
            let last = objects.last().and_then(|object| object.r#ref.as_ref());
            let last = last.and_then(|last| convert::checked_key(last).ok());
            return (objects, last);
        }
        objects.push(object);
    }
    (objects, None)
}

impl Token {
    fn of(request: &ListRequest, kind: Kind) -> Result<Option<Token>, Status> {
        if request.page_token.is_empty() {
            return Ok(None);
        }
        let token = Token::from_str(&request.page_token).map_err(|()| {
            Status::invalid_argument("page_token: this server did not issue the token")
        })?;
        match token.kind == kind && token.within == request.namespace {
            true => Ok(Some(token)),
            false => Err(Status::invalid_argument(
                "page_token: of another listing: kind and namespace must stay the same",
            )),
        }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Token {
            revision,
            kind,
            within,
            last,
        } = self;
        let kind = i32::from(wire::Kind::from(*kind));
        // No name has a slash in it.
        write!(
            f,
            "{revision}/{kind}/{within}/{}/{}",
            last.namespace, last.name
        )
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Token, ()> {
        let fields: Vec<_> = text.split('/').collect();
        let [revision, kind, within, namespace, name] = fields[..] else {
            return Err(());
        };
        let kind = convert::kind(kind.parse().map_err(|_| ())?).map_err(|_| ())?;
        Ok(Token {
            revision: revision.parse().map_err(|_| ())?,
            kind,
            within: within.to_owned(),
            last: ObjectKey {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
        })
    }
}
