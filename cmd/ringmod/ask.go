package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/identity"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// asker is how a command asks a cluster that runs, and how it shows the answer.
type asker struct {
	addr                      string
	peerCert, peerKey, peerCA string
	timeout                   time.Duration
	json                      bool
}

// bind gives cmd the flags of an asker. They have environment variables like all
// others.
func (a *asker) bind(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&a.addr, "addr", "127.0.0.1:8082", "`host:port` of the gRPC services of any member")
	flags.BoolVar(&a.json, "json", false, "print the answer as JSON, for programs")
	flags.DurationVar(&a.timeout, "timeout", 10*time.Second, "how `long` to wait for the answer")
	flags.StringVar(&a.peerCert, "peer-cert", "", "certificate `file` of an operator or member; see 'ringmod certs'")
	flags.StringVar(&a.peerKey, "peer-key", "", "key `file` of --peer-cert")
	flags.StringVar(&a.peerCA, "peer-ca", "", "`file` of the authorities that sign members' certificates")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if err := fromEnvironment(flags, os.LookupEnv); err != nil {
			return err
		}
		return a.check()
	}
}

func (a *asker) check() error {
	if _, _, err := net.SplitHostPort(a.addr); err != nil {
		return usagef("--addr %q is not of the form host:port", a.addr)
	}
	if a.timeout <= 0 {
		return usagef("--timeout %v is no time at all", a.timeout)
	}
	_, err := checkPeerFiles(a.peerCert, a.peerKey, a.peerCA)
	return err
}

// checkPeerFiles tells whether there is to be a certificate.
func checkPeerFiles(cert, key, ca string) (given bool, err error) {
	given = cert != ""
	if given != (key != "") || given != (ca != "") {
		return false, usagef("--peer-cert, --peer-key and --peer-ca go together")
	}
	return given, nil
}

// ask calls the member and prints what it answers, with show where people read
// it.
func ask[R proto.Message](ctx context.Context, a *asker, out io.Writer, call func(context.Context, ringmodv1.AdminServiceClient) (R, error), show func(io.Writer, R)) error {
	var way dialer
	conn, err := a.dialMember(&way)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := call(ctx, ringmodv1.NewAdminServiceClient(conn))
	if err != nil {
		return a.explain(err, way.failure())
	}
	if a.json {
		return printJSON(out, resp)
	}
	show(out, resp)
	return nil
}

// watch calls a member that answers with a stream, and shows each message.
// a.timeout is how long there may be none.
func watch[R any](ctx context.Context, a *asker, call func(context.Context, ringmodv1.AdminServiceClient) (grpc.ServerStreamingClient[R], error), show func(*R) error) error {
	var way dialer
	conn, err := a.dialMember(&way)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(a.timeout, func() { cancel(errSilence) })
	defer silence.Stop()
	stream, err := call(ctx, ringmodv1.NewAdminServiceClient(conn))
	for err == nil {
		var r *R
		if r, err = stream.Recv(); err != nil {
			break
		}
		silence.Reset(a.timeout)
		if err := show(r); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.Is(context.Cause(ctx), errSilence):
		return fmt.Errorf("no sign of life from %s within %v; give more time with --timeout", a.addr, a.timeout)
	default:
		return a.explain(err, way.failure())
	}
}

var errSilence = errors.New("no sign of life")

// dialMember prepares a connection to whichever member listens at the address.
func (a *asker) dialMember(way *dialer) (*grpc.ClientConn, error) {
	creds, err := a.credentials()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+a.addr, append(wire.DialOptions(new(wire.Pool), wire.Near),
		grpc.WithTransportCredentials(creds.Client("", 0)), grpc.WithContextDialer(way.dial))...)
}

// credentials are those of the flags; nil: neither encrypted nor authenticated.
func (a *asker) credentials() (*identity.Credentials, error) {
	if a.peerCert == "" {
		return nil, nil //nolint:nilnil // its methods work on nil
	}
	creds, err := identity.Open(identity.Config{Cert: a.peerCert, Key: a.peerKey, CA: a.peerCA})
	if err != nil {
		return nil, usagef("--peer-cert, --peer-key, --peer-ca: %w", err)
	}
	return creds, nil
}

// dialer remembers why the last connection could not be made: gRPC has only words
// for it.
type dialer struct{ failed atomic.Pointer[error] }

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	d.failed.Store(&err)
	return conn, err
}

// failure returns nil when a connection was made, whatever came of it.
func (d *dialer) failure() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// explain says in one line what went wrong and what to do about it.
func (a *asker) explain(err, unreached error) error {
	err = wire.FromStatus(err, "")
	if told, ok := errors.AsType[*cache.Error](err); ok {
		return errors.New(told.Text)
	}
	trouble, ok := errors.AsType[*wire.PeerError](err)
	if !ok {
		return err
	}
	switch {
	case unreached != nil:
		return fmt.Errorf("no answer from %s: %w; is a ringmod node listening there? give --addr", a.addr, unreached)
	case trouble.Code == codes.Unavailable && a.peerCert == "":
		return fmt.Errorf("no answer from %s, which closes the connection: is a ringmod node listening there? give --addr; a cluster with certificates wants --peer-cert, --peer-key and --peer-ca", a.addr)
	case trouble.Code == codes.Unavailable:
		return fmt.Errorf("no answer from %s: %s; is a ringmod node listening there? give --addr", a.addr, words(status.Convert(trouble.Err).Message()))
	case trouble.Code == codes.DeadlineExceeded:
		return fmt.Errorf("no answer from %s within %v: is a ringmod node listening there? give --addr, or more time with --timeout", a.addr, a.timeout)
	case trouble.Code == codes.Unimplemented:
		return fmt.Errorf("%s is no ringmod member, or one of another version: it does not know this question; give --addr", a.addr)
	default:
		return fmt.Errorf("%s says: %s", a.addr, words(status.Convert(trouble.Err).Message()))
	}
}

// printJSONLine writes m in one line, with the names of the fields in the .proto
// files.
func printJSONLine(out io.Writer, m proto.Message) error {
	line, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err == nil {
		_, err = fmt.Fprintf(out, "%s\n", line)
	}
	return err
}

// printJSON writes m with the names of the fields in the .proto files. protojson
// varies its spaces on purpose.
func printJSON(out io.Writer, m proto.Message) error {
	compact, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err = out.Write(b.Bytes())
	return err
}
