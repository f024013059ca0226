package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Drain tells what a test says, of whom it was asked for.
func (m *fakeMember) Drain(req *ringmodv1.DrainRequest, stream grpc.ServerStreamingServer[ringmodv1.DrainResponse]) error {
	if m.drained == nil || req.GetNodeId() != "n3" {
		return status.Errorf(codes.NotFound, "there is no member %q", req.GetNodeId())
	}
	for _, r := range m.drained {
		r.StreamsLeft = uint32(req.GetStreamTimeout().GetSeconds())
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	return m.err
}

// SetState implements AdminServiceServer.
func (m *fakeMember) SetState(_ context.Context, req *ringmodv1.SetStateRequest) (*ringmodv1.SetStateResponse, error) {
	if req.GetState() != ringmodv1.MemberState_MEMBER_STATE_FORGOTTEN || !req.GetForce() {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is up", req.GetMemberId())
	}
	return &ringmodv1.SetStateResponse{Member: &ringmodv1.Member{Id: req.GetMemberId()}}, nil
}

func TestDrain(t *testing.T) {
	t.Parallel()
	const leaving, left = ringmodv1.MemberState_MEMBER_STATE_LEAVING, ringmodv1.MemberState_MEMBER_STATE_LEFT
	some := &ringmodv1.DrainResponse{State: leaving, Counted: true, ObjectsLeft: 2, BytesLeft: 3 << 20}
	whole := []*ringmodv1.DrainResponse{
		{State: leaving}, some, some, {State: leaving, Counted: true}, {State: left, Counted: true},
	}
	for _, test := range []struct {
		says   []*ringmodv1.DrainResponse
		err    error
		args   string
		exit   int
		stdout string
		stderr string // in it
	}{
		{whole, nil, "n3 --stream-timeout 0s", 0, "n3 is leaving: counting what it alone holds\n" +
			"n3 is leaving: 2 objects (3.0M) to hand over\n" +
			"n3 is leaving: everything has been handed over\n" +
			"n3 has left and holds nothing that others have not. Its data folder can be removed.\n", ""},
		{whole[:1], nil, "n3 --stream-timeout 7s", 1, "n3 is leaving: counting what it alone holds, answers 7 downloads\n", "before that had left"},
		{
			whole[4:], nil, "n3 --json --stream-timeout 0s", 0,
			`{"state":"MEMBER_STATE_LEFT","objects_left":"0","bytes_left":"0","streams_left":0,"counted":true}` + "\n", "",
		},
		{whole[:1], status.Error(codes.Aborted, "it ends"), "n3 --stream-timeout 0s", 1, "n3 is leaving: counting what it alone holds\n", "it ends"},
		{nil, nil, "n4", 1, "", `there is no member "n4"`},
		{nil, nil, "", 2, "", "want the id of one node"},
		{nil, nil, "n3 n4", 2, "", "want the id of one node"},
	} {
		addr := serveMember(t, &fakeMember{drained: test.says, err: test.err})
		exit, stdout, stderr := command(t, append([]string{"drain", "--addr", addr}, strings.Fields(test.args)...)...)
		got := strings.ReplaceAll(stdout, `, "`, `,"`) // protojson varies its spaces
		if exit != test.exit || got != test.stdout || !strings.Contains(stderr, test.stderr) || strings.Count(stderr, "\n") > 1 {
			t.Errorf("drain %s: exit %d\n%s%s\nwant %d\n%s%s", test.args, exit, stdout, stderr, test.exit, test.stdout, test.stderr)
		}
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	addr := serveMember(t, &fakeMember{})
	for _, test := range []struct {
		args string
		exit int
		want string
	}{
		{"n3 --force", 0, "n3 is forgotten"},
		{"n3", 1, "n3 is up"},
		{"", 2, "want the id of one node"},
	} {
		exit, stdout, stderr := command(t, append([]string{"forget", "--addr", addr}, strings.Fields(test.args)...)...)
		if got := fmt.Sprint(stdout, stderr); exit != test.exit || !strings.Contains(got, test.want) {
			t.Errorf("forget %s: exit %d, %q, want %d, %q", test.args, exit, got, test.exit, test.want)
		}
	}
}
