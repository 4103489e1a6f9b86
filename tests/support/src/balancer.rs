//! A load balancer for TCP, as the rules of a Service are one.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Listens on loopback. Each connection goes to one of the backends at random and stays there, whatever becomes of
/// the backend; nothing is tried again. Ends when dropped.
pub struct Balancer {
    /// Where it listens.
    pub port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    backends: Mutex<Vec<u16>>,
    ended: AtomicUsize,
    refused: AtomicUsize,
}

impl Balancer {
    /// Starts one without backends.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&shared)));
            }
        });
        Self { port, state, task }
    }

    /// From now on new connections go to these ports on loopback.
    pub fn route_to(&self, ports: Vec<u16>) {
        *self.state.backends.lock().expect("the backends") = ports;
    }

    /// The ports that new connections go to.
    pub fn routes(&self) -> Vec<u16> {
        self.state.backends.lock().expect("the backends").clone()
    }

    /// How many connections a backend ended so far before their client did.
    pub fn ended(&self) -> usize {
        self.state.ended.load(Relaxed)
    }

    /// How many connections no backend took so far.
    pub fn refused(&self) -> usize {
        self.state.refused.load(Relaxed)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, state: Arc<State>) {
    let backends = state.backends.lock().expect("the backends").clone();
    let backend = match pick(&backends) {
        Some(port) => TcpStream::connect(("127.0.0.1", port)).await.ok(),
        None => None,
    };
    let Some(backend) = backend else {
        state.refused.fetch_add(1, Relaxed);
        return;
    };
    let _ = (client.set_nodelay(true), backend.set_nodelay(true));
    relay(client, backend, &state).await;
}

/// Passes everything on until one side ends, and counts how.
async fn relay(mut client: TcpStream, mut backend: TcpStream, state: &State) {
    let (mut from_client, mut from_backend) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(length) if length > 0 => {
                    if backend.write_all(&from_client[..length]).await.is_err() {
                        break;
                    }
                }
                _ => return,
            },
            read = backend.read(&mut from_backend) => match read {
                Ok(length) if length > 0 => {
                    if client.write_all(&from_backend[..length]).await.is_err() {
                        return;
                    }
                }
                _ => break,
            },
        }
    }
    state.ended.fetch_add(1, Relaxed);
    // What the client is sending now would have it reset, and what the backend said last with it.
    let _ = client.shutdown().await;
    while client.read(&mut from_client).await.is_ok_and(|length| length > 0) {}
}

fn pick(ports: &[u16]) -> Option<u16> {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    // The lowest digits of a clock are as good as dice here.
    ports.get(usize::try_from(nanos / 7).ok()? % ports.len().max(1)).copied()
}
