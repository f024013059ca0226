package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// maxHostRows is how many upstream hosts people are shown; --json has all.
const maxHostRows = 16

// hostsOf shows the upstream hosts as all members together have seen them.
func hostsOf(r *ringmodv1.StatusResponse) *table {
	t := newTable("UPSTREAM HOST", "STATE", "NOT ASKED FOR", "REQUESTS", "PER SECOND", "LAST ERROR", "AGO")
	hosts := sumHosts(r)
	for _, h := range hosts[:min(len(hosts), maxHostRows)] {
		held := none
		if h.GetHeld() != nil {
			held = age(h.GetHeld())
		}
		t.row(h.GetHost(), hostState(h.GetState()), held, strconv.FormatUint(h.GetRequests(), 10), fmt.Sprintf("%.1f", h.GetRate()),
			h.GetLastError(), age(h.GetLastErrorAge()))
	}
	if more := len(hosts) - maxHostRows; more > 0 {
		t.row(fmt.Sprintf("(%d more)", more), "", "", "", "", "", "")
	}
	return t
}

// sumHosts adds up what members report: the worst state, the longest hold, the latest error.
// Those in trouble come first, then those asked most.
func sumHosts(r *ringmodv1.StatusResponse) []*ringmodv1.HostReport {
	sums := make(map[string]*ringmodv1.HostReport)
	for _, m := range r.GetMembers() {
		for _, h := range m.GetReport().GetHosts() {
			sum := sums[h.GetHost()]
			if sum == nil {
				sum = &ringmodv1.HostReport{Host: h.GetHost()}
				sums[h.GetHost()] = sum
			}
			sum.State, sum.Requests, sum.Rate = max(sum.GetState(), h.GetState()), sum.GetRequests()+h.GetRequests(), sum.GetRate()+h.GetRate()
			if h.GetHeld().AsDuration() > sum.GetHeld().AsDuration() {
				sum.Held = h.GetHeld()
			}
			if isLater(h.GetLastErrorAge(), sum.GetLastErrorAge()) {
				sum.LastError, sum.LastErrorAge = h.GetLastError(), h.GetLastErrorAge()
			}
		}
	}
	return slices.SortedFunc(maps.Values(sums), func(a, b *ringmodv1.HostReport) int {
		return cmp.Or(cmp.Compare(b.GetState(), a.GetState()), cmp.Compare(b.GetRequests(), a.GetRequests()), cmp.Compare(a.GetHost(), b.GetHost()))
	})
}

// isLater tells whether something of that age is later than another thing, if there is one.
func isLater(a, than *durationpb.Duration) bool {
	return a != nil && (than == nil || a.AsDuration() < than.AsDuration())
}

func hostState(s ringmodv1.HostState) string {
	switch s {
	case ringmodv1.HostState_HOST_STATE_HELD:
		return "held"
	case ringmodv1.HostState_HOST_STATE_DOWN:
		return "DOWN"
	default:
		return "ok"
	}
}
