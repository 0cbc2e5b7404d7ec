//! rmcp 0.15 answers a lost session with 401 and no content type.

#[path = "../../server.rs"]
mod server;

use rmcp::model::{Implementation, ServerCapabilities};

type Info = rmcp::model::ServerInfo;

fn info() -> Info {
    Info {
        capabilities: ServerCapabilities::builder().enable_tools().build(),
        server_info: Implementation::from_build_env(),
        ..Default::default()
    }
}

fn main() {
    server::serve();
}
