//! The driver of rmcp's client: one JSON command a line in, one JSON answer a line out, in any order.

use std::{
    collections::HashMap,
    io::BufRead,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::stream::BoxStream;
use rmcp::{
    ClientHandler, RoleClient, ServiceExt,
    model::{
        CallToolRequestParams, ClientJsonRpcMessage, LoggingLevel, LoggingMessageNotificationParam,
        ResourceUpdatedNotificationParam, SetLevelRequestParams, SubscribeRequestParams,
    },
    service::{NotificationContext, RunningService, ServiceError},
    transport::{
        StreamableHttpClientTransport,
        streamable_http_client::{
            SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
            StreamableHttpPostResponse,
        },
    },
};
use serde_json::{Value, json};
use sse_stream::Sse;

/// What has come on one connection.
#[derive(Default)]
struct Come {
    seen: Vec<String>,
    heard: Vec<Value>,
}

type Shared = Arc<Mutex<Come>>;

#[derive(Clone)]
struct Hearing(Shared);

impl Hearing {
    fn hears(&self, method: &str, params: impl serde::Serialize) {
        self.0.lock().unwrap().heard.push(json!({"method": method, "params": params}));
    }
}

impl ClientHandler for Hearing {
    async fn on_logging_message(&self, said: LoggingMessageNotificationParam, _: NotificationContext<RoleClient>) {
        self.hears("notifications/message", said);
    }

    async fn on_resource_updated(&self, said: ResourceUpdatedNotificationParam, _: NotificationContext<RoleClient>) {
        self.hears("notifications/resources/updated", said);
    }
}

/// The client's own HTTP, which remembers the session IDs of answers.
#[derive(Clone)]
struct Watching(reqwest::Client, Shared);

type Failed = StreamableHttpError<reqwest::Error>;

impl StreamableHttpClient for Watching {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth: Option<String>,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let answer = self.0.post_message(uri, message, session_id, auth).await?;
        if let StreamableHttpPostResponse::Json(_, Some(id)) | StreamableHttpPostResponse::Sse(_, Some(id)) = &answer {
            let seen = &mut self.1.lock().unwrap().seen;
            if !seen.contains(id) {
                seen.push(id.clone());
            }
        }
        Ok(answer)
    }

    async fn delete_session(&self, uri: Arc<str>, id: Arc<str>, auth: Option<String>) -> Result<(), Failed> {
        self.0.delete_session(uri, id, auth).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        id: Arc<str>,
        last_event_id: Option<String>,
        auth: Option<String>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failed> {
        self.0.get_stream(uri, id, last_event_id, auth).await
    }
}

type Running = RunningService<RoleClient, Hearing>;

#[derive(Clone)]
struct Held {
    come: Shared,
    running: Arc<tokio::sync::RwLock<Option<Running>>>,
}

type Outcome = Result<(&'static str, String), (&'static str, String)>;

fn failed(error: ServiceError) -> (&'static str, String) {
    (if matches!(error, ServiceError::TransportClosed) { "dead" } else { "error" }, error.to_string())
}

impl Held {
    async fn connect(&self, url: String) -> Outcome {
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        let transport =
            StreamableHttpClientTransport::with_client(Watching(reqwest::Client::new(), self.come.clone()), config);
        let opened = Hearing(self.come.clone()).serve(transport).await;
        *self.running.write().await = Some(opened.map_err(|error| ("error", error.to_string()))?);
        Ok(("result", String::new()))
    }

    async fn act(&self, given: &Value) -> Outcome {
        let text = |name: &str| given[name].as_str().unwrap_or_default().to_owned();
        match text("op").as_str() {
            "connect" => return self.connect(text("url")).await,
            "heard" => return Ok(("result", json!(self.come.lock().unwrap().heard).to_string())),
            "close" => {
                let running = self.running.write().await.take();
                if let Some(running) = running {
                    let _ = running.cancel().await;
                }
                return Ok(("result", String::new()));
            }
            _ => (),
        }
        let held = self.running.read().await;
        let client = held.as_ref().ok_or(("error", "not connected".to_owned()))?;
        match text("op").as_str() {
            "tools" => {
                let listed = client.list_tools(None).await.map_err(failed)?;
                let names: Vec<_> = listed.tools.iter().map(|tool| tool.name.to_string()).collect();
                Ok(("result", names.join(" ")))
            }
            "call" => {
                let arguments = given["arguments"].as_object().cloned();
                let params = CallToolRequestParams { meta: None, name: text("tool").into(), arguments, task: None };
                let result = client.call_tool(params).await.map_err(failed)?;
                let said = result.content.iter().filter_map(|part| part.as_text()).map(|part| part.text.as_str());
                Ok((if result.is_error == Some(true) { "tool_error" } else { "result" }, said.collect()))
            }
            "subscribe" => {
                client.subscribe(SubscribeRequestParams { meta: None, uri: text("uri") }).await.map_err(failed)?;
                Ok(("result", String::new()))
            }
            "level" => {
                let level: LoggingLevel = serde_json::from_value(given["level"].clone()).expect("a level");
                client.set_level(SetLevelRequestParams { meta: None, level }).await.map_err(failed)?;
                Ok(("result", String::new()))
            }
            other => Err(("error", format!("there is no {other} here"))),
        }
    }

    async fn answer(&self, given: Value) -> Value {
        let began = Instant::now();
        let bound = Duration::from_secs_f64(given["timeout"].as_f64().expect("a time-out"));
        let outcome = tokio::time::timeout(bound, self.act(&given)).await.unwrap_or(Err(("timeout", String::new())));
        let (kind, text) = outcome.unwrap_or_else(|told| told);
        let seen = self.come.lock().unwrap().seen.clone();
        json!({
            "id": given["id"], "kind": kind, "text": text, "seconds": began.elapsed().as_secs_f64(),
            "session_id": seen.first(), "seen_ids": seen,
        })
    }
}

/// Serve commands until the end of the input.
#[tokio::main]
async fn main() {
    let mut connections: HashMap<String, Held> = HashMap::new();
    let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lock().lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
    while let Some(line) = lines.recv().await {
        let given: Value = serde_json::from_str(&line).expect("a command");
        let name = given["name"].as_str().unwrap_or_default().to_owned();
        if given["op"] == "connect" {
            connections.insert(name.clone(), Held { come: Shared::default(), running: Arc::default() });
        }
        let held = connections[&name].clone();
        tokio::spawn(async move { println!("{}", held.answer(given).await) });
    }
}
