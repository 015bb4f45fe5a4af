//! Watch: gap-free and in order under concurrent transactions, bookmarks, and clear ends.

use std::{collections::BTreeMap, time::Duration};

use sallyport_proto::wire::{Kind, WatchRequest, WatchResponse, watch_event::Event};
use tonic::{Code, Streaming, transport::Endpoint};

use crate::world::{World, namespace, node, pod};

async fn watch(
    world: &World,
    after_revision: u64,
    bookmark_interval_ms: u32,
) -> Streaming<WatchResponse> {
    let request = WatchRequest {
        after_revision,
        bookmark_interval_ms,
    };
    world
        .client
        .clone()
        .watch(request)
        .await
        .unwrap()
        .into_inner()
}

/// Carries out what a watch tells.
fn follow(objects: &mut BTreeMap<(i32, String, String), String>, response: WatchResponse) {
    for event in response.events {
        let key =
            |r#ref: sallyport_proto::wire::ObjectRef| (r#ref.kind, r#ref.namespace, r#ref.name);
        match event.event.unwrap() {
            Event::Put(object) => {
                assert_eq!(object.revision, response.revision);
                objects.insert(key(object.r#ref.unwrap()), object.manifest);
            }
            Event::Delete(reference) => {
                objects.remove(&key(reference)).expect("it was there");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transaction_comes_once_and_in_order() {
    let world = World::new().await;
    world.apply(&[namespace("a"), node("n")].concat()).await;
    let applies = (0..150).map(|n| {
        let world = &world;
        async move {
            let name = format!("p{}", n % 40);
            let text = pod(
                "a",
                &name,
                "n",
                &format!("10.0.0.{}", n % 40),
                &format!("l{n}"),
            );
            world.apply(&text).await;
            if n % 7 == 0 {
                // Another may have been faster.
                let _ = world
                    .try_apply(vec![crate::world::delete(Kind::Pod, "a", &name)])
                    .await;
            }
        }
    });
    let early = watch(&world, 0, 0).await;
    let late = watch(&world, 1, 0).await;
    futures::future::join_all(applies).await;
    let last = world.status().await.revision;
    let afterwards = watch(&world, 0, 0).await;

    let mut ends = Vec::new();
    for (first, mut stream) in [(1, early), (2, late), (1, afterwards)] {
        let mut objects = BTreeMap::new();
        for expected in first..=last {
            let response = stream.message().await.unwrap().unwrap();
            assert_eq!(response.revision, expected);
            assert!(!response.bookmark && !response.events.is_empty());
            follow(&mut objects, response);
        }
        objects.retain(|(kind, ..), _| *kind == i32::from(Kind::Pod));
        ends.push(objects);
    }
    assert!(ends[0] == ends[1] && ends[0] == ends[2]);
    let names: Vec<_> = ends[0].keys().map(|(_, _, name)| name.clone()).collect();
    assert_eq!(names, world.names(Kind::Pod).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookmark_says_that_nothing_happened() {
    let world = World::new().await;
    world.apply(&namespace("a")).await;
    let mut stream = watch(&world, 1, 50).await;
    for _ in 0..3 {
        let bookmark = stream.message().await.unwrap().unwrap();
        assert_eq!(
            (bookmark.revision, bookmark.bookmark, bookmark.events.len()),
            (1, true, 0)
        );
    }
    world.apply(&namespace("b")).await;
    loop {
        let response = stream.message().await.unwrap().unwrap();
        if !response.bookmark {
            assert_eq!(response.revision, 2);
            break;
        }
    }
    assert_eq!(stream.message().await.unwrap().unwrap().revision, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_or_yet_to_come_is_out_of_range() {
    let mut world = World::with_history(5).await;
    for n in 0..20 {
        world.apply(&namespace(&format!("n{n}"))).await;
    }
    let refused = async |world: &World, after_revision| {
        let request = WatchRequest {
            after_revision,
            bookmark_interval_ms: 0,
        };
        let status = world
            .client
            .clone()
            .watch(request)
            .await
            .expect_err("out of range");
        assert_eq!(status.code(), Code::OutOfRange);
        status.message().to_owned()
    };
    let compacted = "the transactions after revision 3 are compacted: the history starts after revision 15; list the \
                     objects, then watch from the list's revision";
    assert_eq!(refused(&world, 3).await, compacted);
    assert_eq!(
        refused(&world, 21).await,
        "revision 21 lies in the future: the current revision is 20"
    );
    assert_eq!(
        watch(&world, 15, 0)
            .await
            .message()
            .await
            .unwrap()
            .unwrap()
            .revision,
        16
    );

    // A restart keeps the history, as far as the journal keeps it.
    world.restart().await;
    assert_eq!(
        watch(&world, 15, 0)
            .await
            .message()
            .await
            .unwrap()
            .unwrap()
            .revision,
        16
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_server_ends_its_streams() {
    let mut world = World::new().await;
    let mut stream = watch(&world, 0, 0).await;
    let stopped =
        tokio::time::timeout(Duration::from_secs(3), world.server.take().unwrap().stop()).await;
    stopped.expect("it does not wait for watchers").unwrap();
    assert_eq!(
        stream.message().await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_answer_for_both_services() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let world = World::new().await;
    let channel = Endpoint::from_shared(world.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let services = ["sallyport.v1.PolicyService", "sallyport.v1.NodeService"];
    let mut health = HealthClient::new(channel.clone());
    for service in ["", services[0], services[1]] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let response = health.check(request).await.unwrap().into_inner();
        assert_eq!(response.status, 1, "{service} is serving");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let requests = futures::stream::iter([request]);
    let mut responses = reflection
        .server_reflection_info(requests)
        .await
        .unwrap()
        .into_inner();
    let response = responses.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = response else {
        panic!("{response:?}");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(
        services
            .iter()
            .all(|service| names.iter().any(|name| name == service)),
        "{names:?}"
    );
}
