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

/// What a client says when it closes a TLS connection is shorter; any request is longer.
const GOODBYE: usize = 64;

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
    cut: AtomicUsize,
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

    /// How many connections a backend ended so far while their client waited for an answer.
    pub fn cut(&self) -> usize {
        self.state.cut.load(Relaxed)
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
    if is_cut(client, backend).await {
        state.cut.fetch_add(1, Relaxed);
    }
}

/// Passes everything on. Whether the backend ended it while the client waited for an answer.
async fn is_cut(mut client: TcpStream, mut backend: TcpStream) -> bool {
    let (mut from_client, mut from_backend) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut waits = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(length) if length > 0 => {
                    waits = true;
                    if backend.write_all(&from_client[..length]).await.is_err() {
                        return length > GOODBYE;
                    }
                }
                _ => return false,
            },
            read = backend.read(&mut from_backend) => match read {
                Ok(length) if length > 0 => {
                    waits = false;
                    if client.write_all(&from_backend[..length]).await.is_err() {
                        return false;
                    }
                }
                _ => break,
            },
        }
    }
    // Something may have been on its way to the backend.
    let _ = client.shutdown().await;
    let mut late = 0;
    while let Ok(length) = client.read(&mut from_client).await
        && length > 0
    {
        late += length;
    }
    waits || late > GOODBYE
}

fn pick(ports: &[u16]) -> Option<u16> {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    // The lowest digits of a clock are as good as dice here.
    ports.get(usize::try_from(nanos / 7).ok()? % ports.len().max(1)).copied()
}
