//! The server as kube's own client sees it.

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Config, ResourceExt as _};

use super::*;

struct Cluster {
    dir: tempfile::TempDir,
    server: ApiServerHandle,
}

const TWO_PODS: &str = "
node: n1
gpus: [{}]
pods:
  - { name: a, labels: { app: x }, containers: [{ devices: ['0'] }] }
  - { name: b, namespace: other, labels: { app: y } }
";

async fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, TWO_PODS).unwrap();
    let options = ApiServerOptions {
        scenarios: vec![scenario],
        exporters: vec!["n1=127.0.0.1:9400".parse().unwrap()],
        ..ApiServerOptions::default()
    };
    Cluster { server: ApiServer::start(options).await.unwrap(), dir }
}

impl Cluster {
    fn rewrite(&self, text: &str) {
        std::fs::write(self.dir.path().join("scenario.yaml"), text).unwrap();
    }

    async fn client(&self, credentials: Credentials) -> Client {
        let path = self.dir.path().join("kubeconfig");
        self.server.write_kubeconfig(&path, &credentials).unwrap();
        let kubeconfig = Kubeconfig::read_from(&path).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    async fn client_of(&self, token: &str) -> Client {
        self.client(Credentials::Token(token.into())).await
    }
}

#[tokio::test]
async fn a_watcher_lists_pods_and_sees_each_change_of_the_scenario() {
    let cluster = cluster().await;
    let pods: Api<Pod> = Api::all(cluster.client_of(ADAPTER_TOKEN).await);
    // The second page is asked for with the first one's token.
    let mut events = watcher(pods, watcher::Config::default().page_size(1)).boxed();
    let mut listed = Vec::new();
    loop {
        match events.try_next().await.unwrap().unwrap() {
            watcher::Event::Init => {}
            watcher::Event::InitApply(pod) => listed.push(pod.name_any()),
            watcher::Event::InitDone => break,
            other => panic!("{other:?} while listing"),
        }
    }
    assert_eq!(listed, ["a", "b"]);

    cluster.rewrite("node: n1\ngpus: [{}]\npods: [{ name: a, labels: { app: z } }, { name: c }]");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match events.try_next().await.unwrap().unwrap() {
            watcher::Event::Apply(pod) => {
                format!("{} {}", pod.name_any(), pod.labels().values().next().cloned().unwrap_or_default())
            }
            watcher::Event::Delete(pod) => format!("{} gone", pod.name_any()),
            other => panic!("{other:?} while watching"),
        });
    }
    assert_eq!(seen, ["a z", "c ", "b gone"]);
}

#[tokio::test]
async fn an_expired_watch_is_listed_again() {
    let cluster = cluster().await;
    let pods: Api<Pod> = Api::all(cluster.client_of(ADAPTER_TOKEN).await);
    let mut events = watcher(pods, watcher::Config::default()).boxed();
    while !matches!(events.try_next().await.unwrap(), Some(watcher::Event::InitDone)) {}
    cluster.server.expire_watches();
    let mut relisted = 0;
    loop {
        match events.next().await.unwrap() {
            // The 410 itself comes first.
            Err(_) | Ok(watcher::Event::Init) => {}
            Ok(watcher::Event::InitApply(_)) => relisted += 1,
            Ok(watcher::Event::InitDone) => break,
            Ok(other) => panic!("{other:?} while listing again"),
        }
    }
    assert_eq!(relisted, 2);
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark() {
    let cluster = cluster().await;
    let pods: Api<Pod> = Api::all(cluster.client_of(ADAPTER_TOKEN).await);
    let mut events = watcher(pods, watcher::Config::default().streaming_lists()).boxed();
    let mut listed = 0;
    loop {
        match events.try_next().await.unwrap().unwrap() {
            watcher::Event::InitApply(_) => listed += 1,
            watcher::Event::InitDone => break,
            watcher::Event::Init => {}
            other => panic!("{other:?} while listing"),
        }
    }
    assert_eq!(listed, 2);
}

#[tokio::test]
async fn selectors_and_namespaces_narrow_a_list() {
    let cluster = cluster().await;
    let client = cluster.client_of(ADMIN_TOKEN).await;
    let names =
        |list: kube::api::ObjectList<Pod>| list.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>();
    let all: Api<Pod> = Api::all(client.clone());
    assert_eq!(names(all.list(&ListParams::default().labels("app in (y,z)")).await.unwrap()), ["b"]);
    assert_eq!(names(all.list(&ListParams::default().fields("spec.nodeName=n2")).await.unwrap()), [""; 0]);
    let other: Api<Pod> = Api::namespaced(client, "other");
    assert_eq!(names(other.list(&ListParams::default()).await.unwrap()), ["b"]);
    assert_eq!(other.get_opt("a").await.unwrap(), None);
    let error = all.list(&ListParams::default().labels("app===bad")).await.unwrap_err();
    assert!(error.to_string().contains("label value"), "{error}");
}

#[tokio::test]
async fn exporters_and_the_authentication_config_are_there() {
    let cluster = cluster().await;
    let client = cluster.client_of(ADAPTER_TOKEN).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "podgauge");
    let selected = ListParams::default().labels("kubernetes.io/service-name=podgauge-exporter");
    assert_eq!(slices.list(&selected).await.unwrap().items.len(), 1);
    cluster.server.set_exporters(&[]);
    assert_eq!(slices.list(&selected).await.unwrap().items.len(), 0);
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let map = maps.get("extension-apiserver-authentication").await.unwrap();
    assert_eq!(
        map.data.unwrap()["requestheader-client-ca-file"],
        cluster.server.certificates().front_proxy.pem()
    );
    // Its role names that one map: no other may be read, nor all be listed.
    assert!(forbidden(maps.get("other").await.unwrap_err()));
    assert!(forbidden(maps.list(&ListParams::default()).await.unwrap_err()));
    let only = ListParams::default().fields("metadata.name=extension-apiserver-authentication");
    assert_eq!(maps.list(&only).await.unwrap().items.len(), 1);
}

fn forbidden(error: kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

#[tokio::test]
async fn token_reviews_know_the_tokens() {
    let cluster = cluster().await;
    let reviews: Api<TokenReview> = Api::all(cluster.client_of(ADAPTER_TOKEN).await);
    let ask = |token: &str| TokenReview {
        spec: TokenReviewSpec { token: Some(token.into()), ..TokenReviewSpec::default() },
        ..TokenReview::default()
    };
    let known = reviews.create(&PostParams::default(), &ask(HPA_TOKEN)).await.unwrap().status.unwrap();
    assert_eq!(known.authenticated, Some(true));
    let user = known.user.unwrap();
    assert_eq!(user.username.as_deref(), Some(HPA_CONTROLLER));
    assert!(user.groups.unwrap().contains(&"system:authenticated".to_owned()));
    let unknown = reviews.create(&PostParams::default(), &ask("made up")).await.unwrap().status.unwrap();
    assert_ne!(unknown.authenticated, Some(true));
    assert_eq!(cluster.server.token_reviews(), 2);
    assert_eq!(cluster.server.reviews()[1], Review::Token { token: "made up".into(), user: None });
}

#[tokio::test]
async fn access_reviews_follow_the_rules_and_fail_when_told() {
    let cluster = cluster().await;
    let reviews: Api<authorization::SubjectAccessReview> = Api::all(cluster.client_of(ADAPTER_TOKEN).await);
    let ask = |user: &str| authorization::SubjectAccessReview {
        spec: authorization::SubjectAccessReviewSpec {
            user: Some(user.into()),
            resource_attributes: Some(authorization::ResourceAttributes {
                verb: Some("get".into()),
                group: Some("custom.metrics.k8s.io".into()),
                resource: Some("pods".into()),
                subresource: Some("gpu_utilization".into()),
                namespace: Some("demo".into()),
                name: Some("*".into()),
                ..authorization::ResourceAttributes::default()
            }),
            ..authorization::SubjectAccessReviewSpec::default()
        },
        ..authorization::SubjectAccessReview::default()
    };
    let allowed = reviews.create(&PostParams::default(), &ask(HPA_CONTROLLER)).await.unwrap().status.unwrap();
    assert!(allowed.allowed);
    let denied = reviews.create(&PostParams::default(), &ask("somebody")).await.unwrap().status.unwrap();
    assert!(!denied.allowed);
    cluster.server.set_failing(Failing { access_reviews: true, ..Failing::default() });
    let failed = reviews.create(&PostParams::default(), &ask(HPA_CONTROLLER)).await.unwrap_err();
    assert!(matches!(&failed, kube::Error::Api(status) if status.code == 500), "{failed}");
}

#[tokio::test]
async fn credentials_decide() {
    let cluster = cluster().await;
    let pods = |client: Client| Api::<Pod>::all(client);
    let status = |error: kube::Error| match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => panic!("{other}"),
    };
    let nobody = pods(cluster.client_of(NOBODY_TOKEN).await).list(&ListParams::default()).await.unwrap_err();
    assert_eq!(
        status(nobody),
        (403, "pods is forbidden: User \"nobody\" cannot list resource \"pods\" in API group \"\" at the cluster scope".into())
    );
    let unknown = pods(cluster.client_of("made up").await).list(&ListParams::default()).await.unwrap_err();
    assert_eq!(status(unknown).0, 401);
    let anonymous =
        pods(cluster.client(Credentials::None).await).list(&ListParams::default()).await.unwrap_err();
    assert_eq!(status(anonymous).0, 403);
    let leaf = cluster.server.certificates().client.client("alice", Some("system:masters")).unwrap();
    let alice = pods(cluster.client(Credentials::Certificate(leaf)).await);
    assert_eq!(alice.list(&ListParams::default()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn it_comes_back_on_its_address_after_an_outage() {
    let cluster = cluster().await;
    let client = cluster.client_of(ADMIN_TOKEN).await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
    cluster.server.restart().await.unwrap();
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
    assert_eq!(client.list_api_groups().await.unwrap().groups.len(), 5);
}

#[tokio::test]
async fn secrets_are_written_with_the_conflicts_of_a_cluster() {
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret;

    let cluster = cluster().await;
    let adapter: Api<Secret> = Api::namespaced(cluster.client_of(ADAPTER_TOKEN).await, "podgauge");
    let name = "podgauge-adapter-certificates";
    let secret = |value: &str| {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.to_owned());
        secret.data = Some([("a".to_owned(), ByteString(value.into()))].into());
        secret
    };
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other}"),
    };
    let admin: Api<Secret> = Api::namespaced(cluster.client_of(ADMIN_TOKEN).await, "podgauge");
    assert_eq!(code(admin.get(name).await.unwrap_err()).0, 404);
    let made = adapter.create(&PostParams::default(), &secret("1")).await.unwrap();
    let again = adapter.create(&PostParams::default(), &secret("2")).await.unwrap_err();
    assert_eq!(code(again), (409, "AlreadyExists".to_owned()));
    let mut newer = made.clone();
    newer.data = secret("3").data;
    let newer = adapter.replace(name, &PostParams::default(), &newer).await.unwrap();
    assert_ne!(newer.metadata.resource_version, made.metadata.resource_version);
    assert_eq!(newer.metadata.uid, made.metadata.uid);
    let stale = adapter.replace(name, &PostParams::default(), &made).await.unwrap_err();
    assert_eq!(code(stale), (409, "Conflict".to_owned()));
    // What a rule does not name stays closed.
    assert_eq!(code(adapter.get(name).await.unwrap_err()).0, 403);
    let all = adapter.list(&ListParams::default()).await.unwrap_err();
    assert_eq!(code(all).0, 403);
    assert_eq!(code(adapter.delete(name, &kube::api::DeleteParams::default()).await.unwrap_err()).0, 403);
    let watched: Vec<_> =
        watcher(adapter, watcher::Config::default().fields(&format!("metadata.name={name}")))
            .take(3)
            .try_collect()
            .await
            .unwrap();
    assert!(matches!(&watched[1], watcher::Event::InitApply(secret) if secret.data == newer.data));
    admin.delete(name, &kube::api::DeleteParams::default()).await.unwrap();
    assert_eq!(code(admin.get(name).await.unwrap_err()).0, 404);
}
