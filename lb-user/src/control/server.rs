//! The server of the control socket.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Uid, User},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Interest},
    net::{UnixListener, UnixStream, unix::WriteHalf},
    sync::{Semaphore, broadcast::error::RecvError},
    task::spawn_blocking,
    time::timeout,
};
use tracing::debug;

use super::{
    ErrorReply, Request, TIMEOUT,
    handlers::{check_names, line_of, reply},
    request_error::RequestError,
    send,
    trace::{self, TraceLocks},
};
use crate::{
    event_filter::{EventFilter, EventSelector},
    event_stream::{self, EventStream, Subscription},
    manager::ManagerHandle,
};

/// The longest request, in bytes.
const REQUEST_LIMIT: u64 = 1024 * 1024;

/// The most connections at a time; others wait.
const MAX_CONNECTIONS: usize = 64;

/// The listening socket, removed when dropped.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    free: Arc<Semaphore>,
}

impl ControlServer {
    /// Listens at `path`, for the owner and its group only. A socket without a server is replaced.
    ///
    /// # Errors
    ///
    /// Says that another manager listens there, or why the socket cannot be made.
    pub async fn bind(path: &Path) -> Result<Self> {
        let context = || format!("listen at the control socket {}", path.display());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(context)?;
        }
        if UnixStream::connect(path).await.is_ok() {
            bail!(
                "another manager answers at the control socket {}: stop it, or choose another with \
                 --control-socket",
                path.display()
            );
        }
        // Only a socket may be replaced, not another file.
        if fs::metadata(path).is_ok_and(|it| !it.file_type().is_socket()) {
            bail!(
                "{} exists and is not a socket: remove it, or choose another control_socket",
                path.display()
            );
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(context);
            }
            _ => {}
        }
        // No other user may connect before the mode is set.
        let before = umask(Mode::from_bits_truncate(0o117));
        let listener = UnixListener::bind(path).with_context(context);
        umask(before);
        let listener = listener?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).with_context(context)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            free: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        })
    }

    /// Serves clients, each in a task of its own, until this future is dropped.
    pub async fn serve(self, manager: ManagerHandle) {
        let locks = TraceLocks::default();
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (manager, locks) = (manager.clone(), locks.clone());
                    tokio::spawn(async move {
                        if let Err(error) = serve_client(stream, manager, locks).await {
                            debug!("a control connection ended early: {error:#}");
                        }
                        drop(permit);
                    });
                }
                // For example without free descriptors; other connections may close theirs.
                Err(error) => {
                    debug!("accept a control connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Another program may have removed it.
        _ = fs::remove_file(&self.path);
    }
}

async fn serve_client(
    mut stream: UnixStream,
    manager: ManagerHandle,
    locks: TraceLocks,
) -> Result<()> {
    let user = user(&stream).await?;
    let mut line = Vec::new();
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT));
    timeout(TIMEOUT, reader.read_until(b'\n', &mut line))
        .await
        .context("wait for the request")??;
    let reply = match parse_request(&line) {
        Ok(Request::Events {
            limit,
            follow,
            filter,
        }) => match selector(filter, &manager).await {
            Ok(selector) => {
                let stream = manager.event_stream();
                return events(&mut reader, &mut writer, stream, limit, follow, &selector).await;
            }
            Err(error) => Err(error),
        },
        Ok(Request::Trace(filter)) => match trace::start(&filter, user, &locks, &manager).await {
            Ok(session) => return session.run(&mut reader, &mut writer, &manager).await,
            Err(error) => Err(error),
        },
        Ok(request) => reply(request, user, &manager).await,
        Err(error) => Err(error),
    };
    let reply = match reply {
        Ok(line) => line,
        Err(error) => line_of(&ErrorReply::from(error))?,
    };
    send(&mut writer, &reply).await
}

fn parse_request(line: &[u8]) -> Result<Request, RequestError> {
    if line.len() as u64 == REQUEST_LIMIT && !line.ends_with(b"\n") {
        return Err(RequestError::Usage(anyhow!(
            "the request is too long: at most {REQUEST_LIMIT} bytes, with a newline at the end"
        )));
    }
    serde_json::from_slice(line).map_err(|error| {
        let error = anyhow::Error::from(error).context(format!(
            "unknown request (the manager is memlb {}; a request is JSON such as \
             {{\"verb\":\"status\"}})",
            env!("CARGO_PKG_VERSION")
        ));
        RequestError::Usage(error)
    })
}

/// Returns the client's user name, from the kernel's peer credentials.
async fn user(stream: &UnixStream) -> Result<String> {
    let uid = stream
        .peer_cred()
        .context("read the peer credentials")?
        .uid();
    // The look-up may read a disk or query a server.
    let name = spawn_blocking(move || User::from_uid(Uid::from_raw(uid))).await;
    let name = name.context("look up the user name")?.ok().flatten();
    Ok(name.map_or_else(|| format!("user {uid}"), |user| user.name))
}

/// Refuses unknown names. Workers that join later are not among the known ones.
async fn selector(
    filter: EventFilter,
    manager: &ManagerHandle,
) -> Result<EventSelector, RequestError> {
    if filter == EventFilter::default() {
        return Ok(EventSelector::default());
    }
    let services = manager.snapshot().await?.services;
    check_names(&services, &filter.service, &filter.worker)?;
    Ok(EventSelector::new(filter, &services))
}

async fn events(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut WriteHalf<'_>,
    stream: &EventStream,
    limit: Option<usize>,
    follow: bool,
    selector: &EventSelector,
) -> Result<()> {
    let Subscription {
        mut past, mut live, ..
    } = stream.subscribe(Some(0));
    past.retain(|entry| selector.matches(entry));
    let first = past
        .len()
        .saturating_sub(limit.unwrap_or(event_stream::CAPACITY));
    for entry in &past[first..] {
        send(writer, &line_of(&**entry)?).await?;
    }
    if !follow {
        return Ok(());
    }
    let mut may_read = true;
    loop {
        let mut rest = [0];
        let entry = tokio::select! {
            // A client sends nothing after its request. It may close its own direction only.
            _ = reader.read(&mut rest), if may_read => {
                let state = writer.as_ref().ready(Interest::WRITABLE).await?;
                if state.is_write_closed() {
                    return Ok(());
                }
                may_read = false;
                continue;
            }
            entry = live.recv() => entry,
        };
        match entry {
            Ok(entry) if selector.matches(&entry) => send(writer, &line_of(&*entry)?).await?,
            Ok(_) => {}
            Err(RecvError::Lagged(count)) => {
                debug!("a client was too slow for {count} events");
            }
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn removes_nothing_but_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manager.sock");
        fs::write(&path, "precious").unwrap();
        let refused = ControlServer::bind(&path).await.unwrap_err().to_string();
        assert!(refused.contains("is not a socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let refused = ControlServer::bind(directory.path())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("is not a socket"), "{refused}");

        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a socket without a listener");
        drop(ControlServer::bind(&path).await.unwrap());
        assert!(!path.exists());
    }

    /// Otherwise it would occupy one of the connections until the next event.
    #[tokio::test]
    async fn a_client_that_follows_events_and_closes_the_connection_is_served_no_longer() {
        let (client, mut stream) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = stream.split();
        let (published, selector) = (EventStream::default(), EventSelector::default());
        let served = events(&mut reader, &mut writer, &published, None, true, &selector);
        drop(client);
        timeout(TIMEOUT, served).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_follows_events_and_closes_its_own_direction_is_served() {
        let (mut client, mut stream) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = stream.split();
        let (published, selector) = (EventStream::default(), EventSelector::default());
        let served = events(&mut reader, &mut writer, &published, None, true, &selector);
        client.shutdown().await.unwrap();
        assert!(timeout(Duration::from_millis(200), served).await.is_err());
    }

    #[test]
    fn reports_a_long_request_from_an_unknown_one() {
        let error_of = |line: &[u8]| match parse_request(line) {
            Err(RequestError::Usage(error)) => format!("{error:#}"),
            _ => panic!("the request is valid"),
        };
        let limit = usize::try_from(REQUEST_LIMIT).unwrap();
        let mut line = vec![b'r'; limit];
        assert_eq!(
            error_of(&line),
            "the request is too long: at most 1048576 bytes, with a newline at the end"
        );
        line[limit - 1] = b'\n';
        assert!(error_of(&line).starts_with("unknown request"));
        assert!(parse_request(b"{\"verb\":\"status\"}\n").is_ok());
    }
}
