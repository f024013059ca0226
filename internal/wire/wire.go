// Package wire is how members speak CacheService.Get to each other: the codec of
// the data stream, the settings of servers and clients, what errors are on the
// wire, and the client's side of a stream.
//
// What it promises:
//
//   - Everything on the wire is the protobuf of ringmod.v1, so that any gRPC
//     client can talk to our servers and ours to any server. Only how it is made
//     and read differs: the bytes of a chunk are never copied through protobuf.
//   - A body that Get returns reaches io.EOF only when the node has ended the
//     stream well and order, CRC-32C, size and SHA-256 of all bytes are right.
//     Where the size is known, the bytes that complete the object are not handed
//     out before that.
//   - Absence is only what a node says in so many words. Whatever else goes
//     wrong is a *PeerError: trouble with the node or the way to it, which says
//     nothing of the object, so that the caller asks the next rank.
//   - A stream holds at most one chunk beside what gRPC's windows let in.
//
// What it never does: retry, choose a node, keep a connection, read a disk.
package wire

import "time"

// Sizes of the protocol, in bytes.
const (
	ChunkSize = 256 << 10 // of a chunk, at most (cache.proto)
	MaxInline = 64 << 10  // of an object inside the header, at most (cache.proto)

	MaxStatTargets = 256 // of a StatRequest (cache.proto)
	MaxHops        = 2   // of a GetRequest (cache.proto)
	MaxRequestID   = 64  // bytes (cache.proto)

	maxH1 = 64 // of a module hash: "h1:" and base64 of 32 bytes have 47
)

// Times of the protocol (cluster.md 4.6).
const (
	Heartbeat = time.Second     // between messages of a node that has nothing to send
	Silence   = 3 * time.Second // without any message: the node is dead
)
