package deploy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// newest is the allocation that was made last.
func newest(allocs []*api.AllocationListStub) *api.AllocationListStub {
	return slices.MaxFunc(allocs, func(a, b *api.AllocationListStub) int {
		if a.CreateIndex != b.CreateIndex {
			return int(int64(a.CreateIndex) - int64(b.CreateIndex))
		}
		return strings.Compare(a.Name, b.Name)
	})
}

func lastEvent(task *api.TaskState, kind string) *api.TaskEvent {
	if task == nil {
		return nil
	}
	for _, e := range slices.Backward(task.Events) {
		if e.Type == kind {
			return e
		}
	}
	return nil
}

// eventText is what Nomad says last about an allocation.
func eventText(a *api.AllocationListStub, task *api.TaskState) string {
	if task != nil {
		for _, e := range slices.Backward(task.Events) {
			if e.DisplayMessage != "" && e.Type != api.TaskNotRestarting && e.Type != api.TaskKilling && e.Type != api.TaskRestarting {
				return e.DisplayMessage
			}
		}
	}
	if a.ClientDescription != "" {
		return a.ClientDescription
	}
	return "Nomad does not say why"
}

// driverMessage is the driver's own part of a driver failure. Nomad and the plugin protocol
// put their words before it.
func driverMessage(e *api.TaskEvent) string {
	message := e.DriverError
	if message == "" {
		message = e.DisplayMessage
	}
	if i := strings.LastIndex(message, "desc = "); i >= 0 {
		message = message[i+len("desc = "):]
	}
	return strings.TrimPrefix(message, "failed to start task: ")
}

// exitMessage is what the node adds to an exit code, such as "out of memory".
func exitMessage(e *api.TaskEvent) string {
	text := strings.TrimSpace(e.Details["exit_message"])
	if strings.HasPrefix(text, "exited with code") {
		return ""
	}
	return text
}

// buildFailure is the problem of a build that ended with e.
func buildFailure(e *api.TaskEvent) leapcell.Problem {
	p := leapcell.Problem{Code: leapcell.CodeBuildFailed, Message: exitMessage(e)}
	if p.Message == "" || strings.HasPrefix(p.Message, "the build command exited") {
		p.ExitCode = new(e.ExitCode) // of the command; else it is the node's own
	}
	switch {
	case p.Message == "":
		p.Message = fmt.Sprintf("the build command exited with code %d", e.ExitCode)
	case p.ExitCode == nil && !strings.HasPrefix(p.Message, "the build command "):
		p.Message = "the build failed: " + p.Message
	}
	return p
}

// exitFailure is the problem of an instance that ended with e before it was ready.
func exitFailure(port int, e *api.TaskEvent) leapcell.Problem {
	said := exitMessage(e)
	if why, ok := strings.CutPrefix(said, leapcell.StartFailedPrefix); ok {
		return startFailed(why)
	}
	if why, ok := strings.CutPrefix(said, leapcell.StartUnavailablePrefix); ok {
		return notNow(why)
	}
	if said == leapcell.PortNotListeningText(port) {
		return leapcell.Problem{Code: leapcell.CodePortNotListening, Message: said}
	}
	return startExited(e.ExitCode, said)
}

func startFailed(why string) leapcell.Problem {
	return leapcell.Problem{Code: leapcell.CodeStartFailed, Message: "the instance could not be started: " + why}
}

// notNow is a failed start that Nomad's next attempt may mend.
func notNow(why string) leapcell.Problem {
	return leapcell.Problem{Code: leapcell.CodeUnavailable, Message: "the instance could not be started: " + why}
}

func startExited(code int, said string) leapcell.Problem {
	p := leapcell.Problem{
		Code: leapcell.CodeStartExited, ExitCode: new(code),
		Message: fmt.Sprintf("the start command exited with code %d before it listened", code),
	}
	if said != "" && !strings.HasPrefix(said, "exited with code") {
		p.Message += ": " + said
	}
	return p
}

// gateFailure is what the gate of an instance says about its failed start. [LC5, LC6]
func gateFailure(s leapcell.GateStatus) *failure {
	switch {
	case s.Code == leapcell.CodeStartExited && s.ExitCode != nil:
		return &failure{startExited(*s.ExitCode, s.Message)}
	case s.Code == leapcell.CodeStartFailed:
		return &failure{startFailed(s.Message)}
	case s.Code == leapcell.CodeUnavailable:
		return &failure{notNow(s.Message)}
	}
	return &failure{leapcell.Problem{Code: s.Code, Message: s.Message, ExitCode: s.ExitCode}}
}

// placementText says in one line why Nomad finds no node for a job.
func placementText(m *api.AllocationMetric) string {
	if m.NodesEvaluated == 0 {
		return "no node is ready"
	}
	var why []string
	for _, constraint := range slices.Sorted(maps.Keys(m.ConstraintFiltered)) {
		n := m.ConstraintFiltered[constraint]
		if strings.Contains(constraint, "missing drivers") {
			why = append(why, fmt.Sprintf("%s without the leapcell driver", nodes(n)))
			continue
		}
		why = append(why, fmt.Sprintf("%s ruled out by %q", nodes(n), constraint))
	}
	for _, dimension := range slices.Sorted(maps.Keys(m.DimensionExhausted)) {
		why = append(why, fmt.Sprintf("%s without enough %s", nodes(m.DimensionExhausted[dimension]), dimension))
	}
	for _, quota := range m.QuotaExhausted {
		why = append(why, "the quota is used up: "+quota)
	}
	if len(why) == 0 {
		return fmt.Sprintf("none of %s fits", nodes(m.NodesEvaluated))
	}
	return strings.Join(why, "; ")
}

func nodes(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}
