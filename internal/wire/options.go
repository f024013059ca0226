package wire

import (
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
)

// Settings of connections. Buffers and windows are as measured (perf.md 6.1,
// 6.4, 6.6), the rest is cluster.md 4.12.
const (
	writeBuffer = 256 << 10
	readBuffer  = 128 << 10

	farStreamWindow = 16 << 20 // between regions; inside one gRPC's own estimate
	farConnWindow   = 32 << 20

	// What a stream may let in ahead of a reader that may be slow, where gRPC's own
	// estimate goes up to 16 MiB.
	narrowStreamWindow = 1 << 20
	narrowConnWindow   = 16 << 20

	maxStreams     = 512
	maxMessage     = 4 << 20 // views and pages of keys; Get has its own limit
	maxGetMessage  = 1 << 20 // leaves room for larger chunks in a later version
	maxHeaderList  = 64 << 10
	handshakeLimit = 10 * time.Second

	pingAfter   = 20 * time.Second // without a frame
	pingTimeout = 10 * time.Second
	pingMinimum = 10 * time.Second // what a server puts up with: half of pingAfter, for pings that bunch

	connectTimeout = 5 * time.Second
	minBackoff     = 100 * time.Millisecond
	maxBackoff     = 3 * time.Second // a node that is back is noticed soon
)

// Distance is how far away the other end is.
type Distance uint8

// The distances.
const (
	Near   Distance = iota // in the same region
	Far                    // in another region: long round trips
	Narrow                 // in the same region, for streams whose readers may be slow
)

// ServerOptions are what a server of members needs: the codec, which all
// services on it share, buffers, limits and keepalive. Credentials are the
// caller's.
func ServerOptions(pool *Pool) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec{}),
		experimental.BufferPool(pool),
		grpc.WriteBufferSize(writeBuffer),
		grpc.ReadBufferSize(readBuffer),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: math.MaxInt64, Time: pingAfter, Timeout: pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingMinimum, PermitWithoutStream: true}),
	}
}

// DialOptions are what a connection to a member needs. gRPC retries nothing:
// whom to ask next is the caller's to say. Credentials are the caller's too.
func DialOptions(pool *Pool, d Distance) []grpc.DialOption {
	options := []grpc.DialOption{
		experimental.WithBufferPool(pool),
		grpc.WithWriteBufferSize(writeBuffer),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeaderList),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}
	switch d {
	case Far:
		options = append(options, grpc.WithInitialWindowSize(farStreamWindow), grpc.WithInitialConnWindowSize(farConnWindow))
	case Narrow:
		options = append(options, grpc.WithInitialWindowSize(narrowStreamWindow), grpc.WithInitialConnWindowSize(narrowConnWindow))
	}
	return options
}
