//! The tools of the interoperability suite on rmcp's own HTTP service; shared by every crate of this workspace.
//!
//! The ledger is the proof of what ran: a line is appended before a tool does anything else.

use std::{fs::OpenOptions, io::Write, sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering, time::Duration};

use rmcp::{
    ServerHandler,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    tool, tool_handler, tool_router,
    transport::streamable_http_server::{StreamableHttpService, session::local::LocalSessionManager},
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct Text {
    text: String,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct Key {
    key: String,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
pub struct Slow {
    seconds: f64,
    key: String,
}

/// One instance lives as long as one session, so its counter is session state.
#[derive(Clone)]
pub struct Tools {
    calls: Arc<AtomicU64>,
    #[allow(dead_code)]
    tool_router: ToolRouter<Self>,
}

fn record(key: &str) {
    let path = std::env::var("INTEROP_LEDGER").expect("INTEROP_LEDGER names the ledger");
    let mut ledger = OpenOptions::new().create(true).append(true).open(path).expect("ledger opens");
    ledger.write_all(format!("{key}\n").as_bytes()).expect("ledger takes a line");
}

async fn record_and_wait(slow: Slow) -> String {
    record(&slow.key);
    tokio::time::sleep(Duration::from_secs_f64(slow.seconds)).await;
    slow.key
}

#[tool_router]
impl Tools {
    pub fn new() -> Self {
        Self { calls: Arc::default(), tool_router: Self::tool_router() }
    }

    #[tool(description = "Give the text back", annotations(read_only_hint = true))]
    async fn echo(&self, Parameters(text): Parameters<Text>) -> String {
        text.text
    }

    #[tool(description = "Append a line to the ledger")]
    async fn add_to_ledger(&self, Parameters(key): Parameters<Key>) -> String {
        record(&key.key);
        key.key
    }

    #[tool(description = "Append a line to the ledger, then take a while")]
    async fn slow(&self, Parameters(slow): Parameters<Slow>) -> String {
        record_and_wait(slow).await
    }

    #[tool(description = "Take a while and change nothing", annotations(read_only_hint = true))]
    async fn slow_read(&self, Parameters(slow): Parameters<Slow>) -> String {
        record_and_wait(slow).await
    }

    #[tool(description = "Count the calls of this session", annotations(read_only_hint = true))]
    async fn count(&self) -> String {
        (self.calls.fetch_add(1, Ordering::Relaxed) + 1).to_string()
    }
}

#[tool_handler]
impl ServerHandler for Tools {
    fn get_info(&self) -> crate::Info {
        crate::info()
    }
}

/// Serve on the loopback port given as the only argument, until killed.
#[tokio::main]
pub async fn serve() {
    let port: u16 = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: SERVER PORT");
    let service = StreamableHttpService::new(
        || Ok(Tools::new()),
        Arc::<LocalSessionManager>::default(),
        Default::default(),
    );
    let app = axum::Router::new().nest_service("/mcp", service);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("port is free");
    axum::serve(listener, app).await.expect("serving does not fail");
}
