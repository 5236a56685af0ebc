package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestSQLite(t *testing.T) {
	suite(t, func(t *testing.T) *Store {
		s, err := Open(t.Context(), filepath.Join(t.TempDir(), "leapcell.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

// suite is what every database has to pass. open gives an empty store.
func suite(t *testing.T, open func(*testing.T) *Store) {
	for name, test := range map[string]func(*testing.T, *Store){
		"ServiceRoundTrip":            testServiceRoundTrip,
		"ServiceNameConflict":         testServiceNameConflict,
		"ServiceIDWinsOverName":       testServiceIDWinsOverName,
		"UpdateServiceRollsBack":      testUpdateServiceRollsBack,
		"DeploymentRoundTrip":         testDeploymentRoundTrip,
		"NumbersAreNeverReused":       testNumbersAreNeverReused,
		"NumbersInParallel":           testNumbersInParallel,
		"MadeOutlivesItsService":      testMadeOutlivesItsService,
		"ARequestMakesOneDeployment":  testARequestMakesOneDeployment,
		"ForbiddenStateChange":        testForbiddenStateChange,
		"DeploymentsNewestFirst":      testDeploymentsNewestFirst,
		"UnfinishedAreThoseToResume":  testUnfinished,
		"DeleteServiceTakesItsThings": testDeleteService,
		"EnvVersionsAndLimit":         testEnv,
		"EnvPendingUntilApplied":      testEnvPending,
		"EnvInParallel":               testEnvInParallel,
		"Tokens":                      testTokens,
		"Connections":                 testConnections,
		"GitEvents":                   testGitEvents,
		"Meters":                      testMeters,
		"MetersInAnyOrder":            testMetersInAnyOrder,
		"MeterHours":                  testMeterHours,
		"MetersAllOrNone":             testMetersAllOrNone,
		"MetersOfADeletedService":     testMetersOfADeletedService,
		"OldMetersAreForgotten":       testOldMetersAreForgotten,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func wantCode(t *testing.T, err error, code leapcell.Code) {
	t.Helper()
	if got := leapcell.ErrorCode(err); got != code {
		t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
}

func newService(t *testing.T, s *Store, name string) leapcell.Service {
	t.Helper()
	svc := leapcell.Service{
		ID: name + "-default-abcdefgh", Name: name, Workspace: "default", Host: name + ".leapcell.localhost",
		URL: "http://" + name + ".leapcell.localhost:8080", Settings: leapcell.Settings{Port: 9000, StartTimeout: leapcell.Duration(3 * time.Second)},
	}
	if err := s.CreateService(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	return svc
}

func newDeployment(t *testing.T, s *Store, serviceID string) leapcell.Deployment {
	t.Helper()
	d, err := s.CreateDeployment(t.Context(), serviceID, leapcell.Source{Upload: "abc", RootDir: "app"}, leapcell.Settings{Runtime: "go"}, leapcell.Origin{Trigger: leapcell.Push, StartedBy: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testServiceRoundTrip(t *testing.T, s *Store) {
	want := newService(t, s, "python")
	for _, key := range []string{want.Name, want.ID} {
		got, err := s.Service(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if got.CreatedAt.IsZero() || got.CreatedAt != got.UpdatedAt {
			t.Errorf("times are %v and %v", got.CreatedAt, got.UpdatedAt)
		}
		got.CreatedAt, got.UpdatedAt = time.Time{}, time.Time{}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("by %q:\n got %+v\nwant %+v", key, got, want)
		}
	}
	newService(t, s, "go")
	all, err := s.Services(t.Context())
	if err != nil || len(all) != 2 || all[0].Name != "go" || all[1].Name != "python" {
		t.Errorf("services are %+v, %v: want go and python", all, err)
	}
	_, err = s.Service(t.Context(), "nobody")
	wantCode(t, err, leapcell.CodeNotFound)
}

func testServiceNameConflict(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	svc.ID = "python-default-other123"
	wantCode(t, s.CreateService(t.Context(), svc), leapcell.CodeConflict)
}

func testServiceIDWinsOverName(t *testing.T, s *Store) {
	a := newService(t, s, "a")
	if err := s.CreateService(t.Context(), leapcell.Service{ID: "b-id", Name: a.ID}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Service(t.Context(), a.ID)
	if err != nil || got.Name != "a" {
		t.Errorf("%s gives %q, %v: want the service of that ID", a.ID, got.Name, err)
	}
}

func testUpdateServiceRollsBack(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	got, err := s.UpdateService(t.Context(), "python", func(x *leapcell.Service) error {
		x.Live, x.Settings.Port, x.ID, x.Name = "python-1", 1234, "other", "other"
		return nil
	})
	if err != nil || got.Live != "python-1" || got.Settings.Port != 1234 || got.ID != svc.ID || got.Name != "python" {
		t.Fatalf("updated to %+v, %v", got, err)
	}
	boom := errors.New("boom")
	if _, err := s.UpdateService(t.Context(), svc.ID, func(x *leapcell.Service) error { x.Live = "no"; return boom }); !errors.Is(err, boom) {
		t.Errorf("error is %v, want boom", err)
	}
	if got, _ := s.Service(t.Context(), svc.ID); got.Live != "python-1" {
		t.Errorf("live is %q after a change that failed", got.Live)
	}
}

func testDeploymentRoundTrip(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	d := newDeployment(t, s, svc.ID)
	if d.ID != "python-1" || d.State != leapcell.Queued || d.Service != "python" || d.Settings.Runtime != "go" {
		t.Fatalf("created %+v", d)
	}
	code := 3
	liveAt := time.Now().UTC().Truncate(time.Microsecond)
	want, err := s.UpdateDeployment(t.Context(), d.ID, func(x *leapcell.Deployment) error {
		x.State, x.Image, x.LiveAt, x.Source.Commit = leapcell.Failed, "r/x@sha256:1", liveAt, "c0ffee"
		x.Error = &leapcell.Problem{Code: leapcell.CodeBuildFailed, Message: "no", ExitCode: &code, LogTail: []string{"a", "b"}}
		x.ID, x.Number = "evil", 99
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Deployment(t.Context(), "python-1")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != "python-1" || got.Number != 1 || got.Error == nil || *got.Error.ExitCode != 3 || len(got.Error.LogTail) != 2 ||
		!got.LiveAt.Equal(liveAt) || got.Source.Commit != "c0ffee" || got.Source.RootDir != "app" || !got.UpdatedAt.Equal(want.UpdatedAt) {
		t.Errorf("read %+v", got)
	}
	_, err = s.Deployment(t.Context(), "nobody-1")
	wantCode(t, err, leapcell.CodeNotFound)
	_, err = s.CreateDeployment(t.Context(), "nobody", leapcell.Source{}, leapcell.Settings{}, leapcell.Origin{})
	wantCode(t, err, leapcell.CodeNotFound)
}

func testNumbersAreNeverReused(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	newDeployment(t, s, svc.ID)
	if d := newDeployment(t, s, svc.ID); d.Number != 2 {
		t.Fatalf("second number is %d", d.Number)
	}
	if err := s.DeleteService(t.Context(), svc.ID); err != nil {
		t.Fatal(err)
	}
	svc = newService(t, s, "python")
	if d := newDeployment(t, s, svc.ID); d.ID != "python-3" {
		t.Errorf("after delete and recreate the deployment is %s, want python-3", d.ID)
	}
}

func testARequestMakesOneDeployment(t *testing.T, s *Store) {
	make := func(serviceID, key string) (leapcell.Deployment, error) {
		return s.CreateDeployment(t.Context(), serviceID, leapcell.Source{}, leapcell.Settings{}, leapcell.Origin{Request: key})
	}
	one, two := newService(t, s, "one"), newService(t, s, "two")
	for range 2 { // without a name there may be many
		if _, err := make(one.ID, ""); err != nil {
			t.Fatal(err)
		}
	}
	want, err := make(one.ID, "key")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := make(one.ID, "key"); err == nil {
		t.Errorf("a second one was made: %s", d.ID)
	}
	if _, err := make(two.ID, "key"); err != nil {
		t.Errorf("of another service: %v", err)
	}
	if got, err := s.Requested(t.Context(), one.ID, "key"); err != nil || got.ID != want.ID || got.Request != "key" {
		t.Errorf("found %s, %v; want %s", got.ID, err, want.ID)
	}
	_, err = s.Requested(t.Context(), one.ID, "other")
	wantCode(t, err, leapcell.CodeNotFound)
}

// Plans count by the day: deleting a service must not give back what it took.
func testMadeOutlivesItsService(t *testing.T, s *Store) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return now }
	svc := newService(t, s, "python")
	made := func(trigger leapcell.Trigger) {
		t.Helper()
		if _, err := s.CreateDeployment(t.Context(), svc.ID, leapcell.Source{}, leapcell.Settings{}, leapcell.Origin{Trigger: trigger}); err != nil {
			t.Fatal(err)
		}
	}
	since := func(workspace string, at time.Time) (out []string) {
		t.Helper()
		all, err := s.DeploymentsSince(t.Context(), workspace, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			out = append(out, fmt.Sprintf("%s %s", m.Trigger, m.CreatedAt.UTC().Format("15:04")))
		}
		return out
	}
	made(leapcell.Manual)
	now = now.Add(time.Hour)
	made(leapcell.Push)
	if err := s.DeleteService(t.Context(), svc.ID); err != nil {
		t.Fatal(err)
	}
	if got := since("default", now.Add(-time.Hour)); !slices.Equal(got, []string{"manual 12:00", "push 13:00"}) {
		t.Errorf("%q", got)
	}
	if got := since("default", now.Add(-time.Minute)); !slices.Equal(got, []string{"push 13:00"}) {
		t.Errorf("of the last minute: %q", got)
	}
	if got := since("other", time.Time{}); len(got) != 0 {
		t.Errorf("of another workspace: %q", got)
	}
	now = now.Add(keepMade)
	svc = newService(t, s, "python")
	made(leapcell.Manual)
	if got := since("default", time.Time{}); !slices.Equal(got, []string{"push 13:00", "manual 13:00"}) {
		t.Errorf("two days later: %q", got)
	}
}

func testNumbersInParallel(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	const n = 20
	ids := make(chan string, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			d, err := s.CreateDeployment(context.Background(), svc.ID, leapcell.Source{}, leapcell.Settings{}, leapcell.Origin{})
			if err != nil {
				t.Error(err)
			}
			ids <- d.ID
		})
	}
	wg.Wait()
	close(ids)
	seen := map[string]bool{}
	for id := range ids {
		seen[id] = true
	}
	if len(seen) != n || !seen["python-20"] {
		t.Errorf("%d different IDs of %d: %v", len(seen), n, seen)
	}
}

func testForbiddenStateChange(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	d := newDeployment(t, s, svc.ID)
	set := func(to leapcell.State) error {
		_, err := s.UpdateDeployment(t.Context(), d.ID, func(x *leapcell.Deployment) error { x.State, x.Image = to, string(to); return nil })
		return err
	}
	for _, to := range []leapcell.State{leapcell.Fetching, leapcell.Building, leapcell.Cancelled} {
		if err := set(to); err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
	}
	wantCode(t, set(leapcell.Live), leapcell.CodeConflict)
	if got, _ := s.Deployment(t.Context(), d.ID); got.State != leapcell.Cancelled || got.Image != "cancelled" {
		t.Errorf("a refused change left state %s and image %s", got.State, got.Image)
	}
}

func testDeploymentsNewestFirst(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	for range 12 {
		newDeployment(t, s, svc.ID)
	}
	all, err := s.Deployments(t.Context(), svc.ID, 0)
	if err != nil || len(all) != 12 || all[0].Number != 12 || all[11].Number != 1 {
		t.Fatalf("%d deployments, %v", len(all), err)
	}
	some, err := s.Deployments(t.Context(), svc.ID, 2)
	if err != nil || len(some) != 2 || some[1].Number != 11 {
		t.Errorf("newest two are %+v, %v", some, err)
	}
	if _, err := s.UpdateDeployment(t.Context(), all[4].ID, func(d *leapcell.Deployment) error {
		d.State, d.Source.Branch = leapcell.Failed, "o'hara"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for want, q := range map[string]leapcell.DeploymentQuery{
		"[8]":     {States: []leapcell.State{leapcell.Failed, leapcell.Live}},
		"[8] ":    {Branch: "o'hara", Limit: 7},
		"[]":      {Branch: "main"},
		"[2 1]":   {States: []leapcell.State{leapcell.Queued}, Before: 3},
		"[11 10]": {Before: 12, Limit: 2},
	} {
		got, err := s.ListDeployments(t.Context(), svc.ID, q)
		if err != nil {
			t.Fatal(err)
		}
		numbers := []int{}
		for _, d := range got {
			numbers = append(numbers, d.Number)
		}
		if fmt.Sprint(numbers) != strings.TrimSpace(want) {
			t.Errorf("%+v gives %v, want %s", q, numbers, want)
		}
	}
	none, err := s.Deployments(t.Context(), "nobody", 0)
	if err != nil || none == nil || len(none) != 0 {
		t.Errorf("of no service: %v, %v, want an empty list", none, err)
	}
}

func testUnfinished(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	for _, state := range []leapcell.State{leapcell.Queued, leapcell.Building, leapcell.Failed, leapcell.Live, leapcell.Starting} {
		d := newDeployment(t, s, svc.ID)
		if _, err := s.UpdateDeployment(t.Context(), d.ID, func(x *leapcell.Deployment) error { x.State = state; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Unfinished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, d := range all {
		ids = append(ids, d.ID)
	}
	if got := strings.Join(ids, " "); got != "python-1 python-2 python-5" {
		t.Errorf("unfinished are %s", got)
	}
}

func testDeleteService(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	d := newDeployment(t, s, svc.ID)
	if _, err := s.SetEnv(t.Context(), svc.ID, EnvChange{Set: map[string]SealedValue{"A": {"vault:v1:x", 1}}}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteService(t.Context(), svc.ID); err != nil {
		t.Fatal(err)
	}
	_, err := s.Deployment(t.Context(), d.ID)
	wantCode(t, err, leapcell.CodeNotFound)
	if env, err := s.Env(t.Context(), svc.ID); err != nil || env.Version != 0 || len(env.Values) != 0 {
		t.Errorf("environment is %+v, %v", env, err)
	}
	wantCode(t, s.DeleteService(t.Context(), svc.ID), leapcell.CodeNotFound)
}

func testEnv(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	if env, err := s.Env(t.Context(), svc.ID); err != nil || env.Version != 0 || env.Values == nil {
		t.Fatalf("at first %+v, %v", env, err)
	}
	env, err := s.SetEnv(t.Context(), svc.ID, EnvChange{Set: map[string]SealedValue{"A": {"vault:v1:a", 1}, "B": {"vault:v1:b", 2}}})
	if err != nil || env.Version != 1 {
		t.Fatalf("set: %+v, %v", env, err)
	}
	env, err = s.SetEnv(t.Context(), svc.ID, EnvChange{Set: map[string]SealedValue{"B": {"vault:v1:c", 3}}, Unset: []string{"A", "NOT_THERE"}})
	if err != nil || env.Version != 2 || len(env.Values) != 1 || env.Values["B"] != "vault:v1:c" {
		t.Fatalf("changed: %+v, %v", env, err)
	}
	// The limit is over all: BIG alone would fit beside nothing.
	_, err = s.SetEnv(t.Context(), svc.ID, EnvChange{Set: map[string]SealedValue{"BIG": {"vault:v1:d", leapcell.MaxEnvBytes - 3 - 3}}})
	wantCode(t, err, leapcell.CodeUnprocessable)
	if !strings.Contains(err.Error(), "3073") {
		t.Errorf("%q does not name the size", err)
	}
	if _, err = s.SetEnv(t.Context(), svc.ID, EnvChange{Set: map[string]SealedValue{"BIG": {"vault:v1:d", leapcell.MaxEnvBytes - 3 - 4}}}); err != nil {
		t.Errorf("exactly the limit: %v", err)
	}
	env, err = s.SetEnv(t.Context(), svc.ID, EnvChange{Unset: []string{"NOT_THERE"}})
	if err != nil || env.Version != 3 {
		t.Errorf("a change of nothing gives version %d, %v: want 3 still", env.Version, err)
	}
	_, err = s.SetEnv(t.Context(), "nobody", EnvChange{})
	wantCode(t, err, leapcell.CodeNotFound)
}

func testEnvPending(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	pending := func(want int) {
		t.Helper()
		ids, err := s.EnvPending(t.Context())
		if err != nil || len(ids) != want || (want == 1 && ids[0] != svc.ID) {
			t.Fatalf("pending are %v, %v: want %d", ids, err, want)
		}
	}
	pending(0)
	for _, value := range []string{"a", "b"} {
		if _, err := s.SetEnv(t.Context(), svc.ID, EnvChange{Set: map[string]SealedValue{"A": {value, 1}}}); err != nil {
			t.Fatal(err)
		}
	}
	for version, want := range map[int]int{1: 1} { // an older version applied is not enough
		if err := s.EnvApplied(t.Context(), svc.ID, version); err != nil {
			t.Fatal(err)
		}
		pending(want)
	}
	if err := s.EnvApplied(t.Context(), svc.ID, 2); err != nil {
		t.Fatal(err)
	}
	pending(0)
	if err := s.EnvApplied(t.Context(), svc.ID, 1); err != nil { // a late one takes nothing back
		t.Fatal(err)
	}
	pending(0)
}

func testEnvInParallel(t *testing.T, s *Store) {
	svc := newService(t, s, "python")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := string(rune('A' + i))
			if _, err := s.SetEnv(context.Background(), svc.ID, EnvChange{Set: map[string]SealedValue{name: {name, 1}}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if env, err := s.Env(t.Context(), svc.ID); err != nil || env.Version != 20 || len(env.Values) != 20 {
		t.Errorf("version %d with %d values, %v: want 20 and 20", env.Version, len(env.Values), err)
	}
}

func testTokens(t *testing.T, s *Store) {
	first, err := s.CreateToken(t.Context(), "admin", RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	name, role, err := s.TokenRole(t.Context(), first)
	if err != nil || name != "admin" || role != RoleAdmin {
		t.Errorf("token is of %q, %q, %v", name, role, err)
	}
	for _, bad := range []string{"", "lc_", first + "x", strings.ToLower(first)} {
		_, _, err := s.TokenRole(t.Context(), bad)
		wantCode(t, err, leapcell.CodeUnauthorized)
	}
	second, err := s.CreateToken(t.Context(), "admin", RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.TokenRole(t.Context(), first)
	wantCode(t, err, leapcell.CodeUnauthorized)
	if err := s.PutToken(t.Context(), "edge", RoleEdge, second); err != nil {
		t.Fatal(err)
	}
	if _, role, err := s.TokenRole(t.Context(), second); err != nil || role != RoleEdge {
		t.Errorf("role is %q, %v", role, err)
	}
}

func TestStoreSurvivesReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with space & ?.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	svc := newService(t, s, "python")
	token, err := s.CreateToken(t.Context(), "admin", RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Service(t.Context(), svc.ID); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err) // the file is where it was asked for
	}
	if strings.Contains(string(b), token) {
		t.Error("the store holds a token in clear")
	}
}

// Deployments that were made before plans counted deleted ones count.
func TestMadeOfAnOlderStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leapcell.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	want := newDeployment(t, s, newService(t, s, "python").ID)
	for _, q := range []string{`DROP INDEX deployments_request`, `DROP TABLE made`, `DELETE FROM goose_db_version WHERE version_id >= 5`} {
		if _, err := s.db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.DeploymentsSince(t.Context(), "default", time.Time{})
	if err != nil || len(got) != 1 || !got[0].CreatedAt.Equal(want.CreatedAt) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPragmas(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000"} {
		var got string
		if err := s.db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, %v: want %q", pragma, got, err, want)
		}
	}
}

func TestOpenRefusesWhatItCannotDo(t *testing.T) {
	_, err := Open(t.Context(), "postgres://localhost/x")
	wantCode(t, err, leapcell.CodeInvalid)
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "no", "such", "folder", "x.db")); err == nil {
		t.Error("a file in a folder that is not there was opened")
	}
}

func TestFullDiskIsSaid(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.db.SetMaxOpenConns(1) // the pragma is the connection's
	if _, err := s.db.ExecContext(t.Context(), "PRAGMA max_page_count = 1"); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		err = s.CreateService(t.Context(), leapcell.Service{ID: strings.Repeat("x", 1000) + string(rune(i+1000)), Name: string(rune(i + 1000))})
		if err != nil {
			break
		}
	}
	wantCode(t, err, leapcell.CodeUnavailable)
	if !strings.Contains(leapcell.ErrorMessage(err), "disk") {
		t.Errorf("%q does not speak of the disk", leapcell.ErrorMessage(err))
	}
}
