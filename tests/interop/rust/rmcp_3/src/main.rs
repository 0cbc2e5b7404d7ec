//! The newest rmcp answers a lost session with 404 and a plain text, and serves 2026-07-28 on the same endpoint.

#[path = "../../server.rs"]
mod server;

use rmcp::model::ServerCapabilities;

type Info = rmcp::model::ServerConfig;

fn info() -> Info {
    Info::new(ServerCapabilities::builder().enable_tools().build())
}

fn main() {
    server::serve();
}
