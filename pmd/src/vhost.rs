//! vhost-user: message, session, server.
