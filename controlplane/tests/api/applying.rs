//! Apply, Get, List: what is carried out, what is refused, and that of what is refused nothing is visible.

use sallyport_proto::wire::{
    ApplyRequest, Edit, Kind, ListRequest, change::Action, edit::Op,
    policy_service_client::PolicyServiceClient,
};
use tonic::Code;

use crate::world::{World, actions, delete, manifest, namespace, node, pod, policy, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_carried_out_whole_and_survives_a_restart() {
    let mut world = World::new().await;
    let text = [
        pod("a", "web", "n", "10.0.0.1", "web"),
        namespace("a"),
        node("n"),
        policy("p", "web", "x"),
    ]
    .concat();
    let response = world.try_apply(vec![put(&text)]).await.unwrap();
    let created = |name: &str| (name.to_owned(), Action::Created);
    assert_eq!(response.revision, 1);
    assert_eq!(
        actions(&response),
        [created("web"), created("a"), created("n"), created("p")]
    );

    let again = world.try_apply(vec![put(&text)]).await.unwrap();
    assert_eq!(
        again.revision, 1,
        "nothing changed, so there is no revision"
    );
    assert!(
        actions(&again)
            .iter()
            .all(|(_, action)| *action == Action::Unchanged)
    );

    let by_manifest = Edit {
        op: Some(Op::DeleteManifest(manifest(&policy("p", "other", "spec")))),
    };
    let response = world.try_apply(vec![by_manifest]).await.unwrap();
    assert_eq!(
        (response.revision, actions(&response)),
        (2, vec![("p".to_owned(), Action::Deleted)])
    );

    let web = world.get(Kind::Pod, "a", "web").await.unwrap();
    assert_eq!(web.revision, 1);
    assert!(
        web.manifest.contains(r#""podIP":"10.0.0.1""#),
        "{}",
        web.manifest
    );
    world.restart().await;
    assert_eq!(world.get(Kind::Pod, "a", "web").await.unwrap(), web);
    assert_eq!(
        (world.status().await.revision, world.status().await.epoch),
        (2, 1)
    );
    assert_eq!(world.delete(Kind::Namespace, "", "a").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_is_refused_nothing_is_visible() {
    let mut world = World::new().await;
    world
        .apply(
            &[
                namespace("a"),
                node("n"),
                pod("a", "web", "n", "10.0.0.1", "web"),
            ]
            .concat(),
        )
        .await;
    let before = (world.status().await, world.names(Kind::Pod).await);
    let good = pod("a", "good", "n", "10.0.0.2", "x");
    let cases = [
        (
            vec![put(&good), put(&namespace("Bad"))],
            Code::InvalidArgument,
            "t.yaml",
        ),
        (
            vec![
                put(&good),
                put(&policy("p", "x", "z").replace("namespace: a}", "namespace: b}")),
            ],
            Code::NotFound,
            r#"t.yaml: NetworkPolicy b/p: namespaces "b" not found"#,
        ),
        (
            vec![put(&good), delete(Kind::Node, "", "m")],
            Code::NotFound,
            r#"nodes "m" not found"#,
        ),
        (
            vec![
                put(&good),
                put(
                    "{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {name: web, namespace: a}, spec: {}}",
                ),
            ],
            Code::AlreadyExists,
            "t.yaml: Workload a/web: pods \"web\" already exists in the namespace: a Pod and a Workload cannot share",
        ),
        (
            vec![put(&good), Edit { op: None }],
            Code::InvalidArgument,
            "edits[1]: empty",
        ),
        (
            vec![put(&good), delete(Kind::Pod, "", "x")],
            Code::InvalidArgument,
            "edits[1]: delete: Pod x: namespace: Required value",
        ),
    ];
    for (edits, code, message) in cases {
        let (found, text) = world.refused(edits).await;
        assert!(found == code && text.contains(message), "{found:?}: {text}");
    }
    // Everything that is wrong is told at once, a line each.
    let (code, text) = world
        .refused(vec![put(&namespace("Bad")), put(&namespace("Worse"))])
        .await;
    assert_eq!(
        (code, text.lines().count()),
        (Code::InvalidArgument, 2),
        "{text}"
    );
    let (_, text) = world
        .refused(vec![put(&(0..5_000)
            .map(|n| {
                pod(
                    "no",
                    &format!("p{n}"),
                    "no",
                    &format!("10.1.{}.{}", n / 250, n % 250),
                    "x",
                )
            })
            .collect::<String>())])
        .await;
    assert!(
        text.ends_with(" more") && text.lines().count() > 10,
        "{text}"
    );

    world.restart().await;
    assert_eq!(
        (world.status().await.revision, world.names(Kind::Pod).await),
        (before.0.revision, before.1)
    );
    assert_eq!(world.apply(&good).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expected_revision_and_a_dry_run_are_kept() {
    let world = World::new().await;
    world.apply(&namespace("a")).await;
    let request = |expected, dry_run| ApplyRequest {
        edits: vec![put(&namespace("b"))],
        expected_revision: expected,
        dry_run,
        ..ApplyRequest::default()
    };
    let mut client = world.client.clone();

    let tried = client
        .apply(request(Some(1), true))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (tried.revision, actions(&tried)),
        (1, vec![("b".to_owned(), Action::Created)])
    );
    assert_eq!(
        (
            world.status().await.revision,
            world.names(Kind::Namespace).await
        ),
        (1, vec!["a".to_owned()])
    );

    for stale in [0, 2, 99] {
        let status = client.apply(request(Some(stale), false)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            format!(
                "the current revision is 1, not {stale}: nothing was changed. Look at the changes and try again"
            )
        );
    }
    assert_eq!(
        client
            .apply(request(Some(1), false))
            .await
            .unwrap()
            .into_inner()
            .revision,
        2
    );
}

/// Of many who expect the same revision, one is lucky.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_transactions_get_a_revision_each() {
    let world = World::new().await;
    let applies = (0..100).map(|n| {
        let mut client = world.client.clone();
        async move {
            let expected = (n % 10 == 0).then_some(0);
            let edits = vec![put(&namespace(&format!("n{n}")))];
            let request = ApplyRequest {
                edits,
                expected_revision: expected,
                dry_run: false,
                ..ApplyRequest::default()
            };
            client
                .apply(request)
                .await
                .map(|response| response.into_inner().revision)
        }
    });
    let results = futures::future::join_all(applies).await;
    let mut revisions: Vec<_> = results
        .iter()
        .filter_map(|result| result.as_ref().ok())
        .copied()
        .collect();
    revisions.sort_unstable();
    assert_eq!(
        revisions,
        (1..=revisions.len() as u64).collect::<Vec<_>>(),
        "without holes"
    );
    assert!((90..=91).contains(&revisions.len()), "{}", revisions.len());
    assert_eq!(world.names(Kind::Namespace).await.len(), revisions.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_large_is_told_the_limit() {
    let world = World::new().await;
    let text = format!("{}{}", namespace("a"), "# filler\n".repeat(8 << 20));
    assert!(text.len() > 64 << 20);
    let (code, message) = world.refused(vec![put(&text)]).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert_eq!(
        message,
        "the request is larger than 67108864 bytes (64 MiB), the limit: nothing was changed; split it into several transactions"
    );
    let rule = "{ports: [{port: 80}], from: [{podSelector: {matchLabels: {a: b}}}]},";
    let large =
        policy("p", "x", "z").replace("ingress: [", &format!("ingress: [{}", rule.repeat(20_000)));
    let (code, message) = world.refused(vec![put(&large)]).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        message.contains("limit") || message.contains("Too many"),
        "{message}"
    );
    assert_eq!(world.apply(&namespace("a")).await, 1, "others are served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_is_of_one_revision() {
    let world = World::new().await;
    let pods: String = (0..25)
        .map(|n| pod("a", &format!("p{n:02}"), "n", &format!("10.0.0.{n}"), "x"))
        .collect();
    world
        .apply(
            &[
                namespace("a"),
                namespace("b"),
                node("n"),
                pods,
                pod("b", "other", "n", "10.0.1.1", "x"),
            ]
            .concat(),
        )
        .await;
    let mut client = world.client.clone();
    let mut request = ListRequest {
        kind: Kind::Pod.into(),
        namespace: "a".into(),
        page_size: 10,
        page_token: String::new(),
    };
    let (mut names, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.list(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.revision, 1, "all pages");
        names.extend(
            page.objects
                .into_iter()
                .map(|object| object.r#ref.unwrap().name),
        );
        pages += 1;
        // What happens meanwhile is not in it.
        world
            .delete(Kind::Pod, "a", &format!("p{:02}", 24 - pages))
            .await;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!((names.len(), pages), (25, 3));
    assert!(names.is_sorted());

    request.page_token = "99/4/a/a/p00".into();
    let status = client.list(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    request.page_token = "nonsense".into();
    assert_eq!(
        client.list(request.clone()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    request.kind = 0;
    assert_eq!(
        client.list(request).await.unwrap_err().message(),
        "kind: Required value"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_listings_come_in_pages_that_any_client_takes() {
    let world = World::new().await;
    let filler = "x".repeat(100_000);
    for n in 0..60 {
        let large = namespace(&format!("n{n}"))
            .replace("{name", &format!("{{annotations: {{x: {filler}}}, name"));
        world.apply(&large).await;
    }
    // With tonic's own limit of 4 MiB.
    let mut client = PolicyServiceClient::connect(world.url()).await.unwrap();
    let (mut count, mut token) = (0, String::new());
    loop {
        let request = ListRequest {
            kind: Kind::Namespace.into(),
            page_token: token,
            ..ListRequest::default()
        };
        let page = client.list(request).await.unwrap().into_inner();
        count += page.objects.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(count, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_not_found() {
    let world = World::new().await;
    let status = world.get(Kind::NetworkPolicy, "a", "p").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::NotFound,
            r#"networkpolicies.networking.k8s.io "p" not found"#
        )
    );
    let status = world.get(Kind::Node, "a", "p").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::InvalidArgument,
            "Node p: namespace: a Node has no namespace"
        )
    );
}
