package main

import (
	"fmt"
	"strings"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// advised says what has changed upstream, and what the module's author says.
func advised(subject string, r *ringmodv1.ExplainResponse) []string {
	var lines []string
	for _, f := range r.GetFindings() {
		name := words(f.GetModule().GetPath()) + "@" + words(f.GetModule().GetVersion())
		lines = append(lines, name+" "+changedTo(f))
	}
	a := r.GetAdvice()
	if a == nil {
		return lines
	}
	says := "go.mod of " + words(a.GetLatest())
	switch {
	case a.GetLatest() == "":
		return append(lines, "Retractions are not known: no node holds the list of its versions")
	case !a.GetKnown():
		return append(lines, "Retractions are not known: no node holds the go.mod of "+words(a.GetLatest())+", the latest version, or it cannot be read")
	case a.GetDeprecated() != "":
		lines = append(lines, fmt.Sprintf("DEPRECATED by the %s: %s", says, strings.TrimSuffix(words(a.GetDeprecated()), ".")))
	}
	_, version, _ := strings.Cut(subject, "@")
	for _, t := range a.GetRetractions() {
		what := words(t.GetLow())
		if t.GetHigh() != t.GetLow() {
			what += " to " + words(t.GetHigh())
		}
		if version != "" && what != version {
			what = words(version) + ", with " + what + ","
		}
		line := fmt.Sprintf("%s RETRACTED by the %s", what, says)
		if why := strings.TrimSuffix(words(t.GetRationale()), "."); why != "" {
			line += ": " + why
		}
		lines = append(lines, line)
	}
	return lines
}

// changedTo says in words what has become of a version upstream.
func changedTo(f *ringmodv1.AuditFinding) string {
	what := "HAS VANISHED upstream, it was commit " + commit(f.GetOldCommit())
	switch {
	case f.GetNewCommit() != "":
		what = fmt.Sprintf("HAS MOVED upstream from commit %s to %s", commit(f.GetOldCommit()), commit(f.GetNewCommit()))
	case f.GetOldCommit() == "":
		what = "HAS VANISHED upstream"
	}
	what += fmt.Sprintf(" (%s, first seen %s ago)", words(f.GetSource()), age(f.GetFirstSeenAge()))
	return what + "; what is held is served on"
}
