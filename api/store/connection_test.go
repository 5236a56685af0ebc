package store

import (
	"reflect"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func testConnections(t *testing.T, s *Store) {
	svc := newService(t, s, "shop")
	_, err := s.ConnectionOf(t.Context(), svc.ID)
	wantCode(t, err, leapcell.CodeNotFound)
	one := SealedConnection{
		Connection: leapcell.Connection{ID: "c1", ServiceID: svc.ID, GitURL: "https://example.com/x.git", Branch: "main", Provider: leapcell.Gitea, CreatedAt: fromMicros(1)},
		Sealed:     map[string]string{"hook": "vault:v1:abc"},
	}
	if err := s.PutConnection(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	one.Previews = true
	if err := s.PutConnection(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	for _, get := range []func() (SealedConnection, error){
		func() (SealedConnection, error) { return s.Connection(t.Context(), "c1") },
		func() (SealedConnection, error) { return s.ConnectionOf(t.Context(), svc.ID) },
	} {
		if got, err := get(); err != nil || !reflect.DeepEqual(got, one) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	two := one
	two.ID = "c2"
	if err := s.PutConnection(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	_, err = s.Connection(t.Context(), "c1")
	wantCode(t, err, leapcell.CodeNotFound)
	if err := s.DeleteService(t.Context(), svc.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Connection(t.Context(), "c2")
	wantCode(t, err, leapcell.CodeNotFound)
	wantCode(t, s.PutConnection(t.Context(), two), leapcell.CodeNotFound)
	if err := s.DeleteConnection(t.Context(), svc.ID); err != nil {
		t.Error(err)
	}
}

func testGitEvents(t *testing.T, s *Store) {
	svc := newService(t, s, "shop")
	c := SealedConnection{Connection: leapcell.Connection{ID: "c1", ServiceID: svc.ID}}
	if err := s.PutConnection(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	event := leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: "abc", By: "ada"}
	add := func(want bool, deliveries ...string) {
		t.Helper()
		if added, err := s.AddGitEvent(t.Context(), "c1", deliveries, event); err != nil || added != want {
			t.Errorf("%v: added is %v, %v", deliveries, added, err)
		}
	}
	add(true, "id-1", "sum-1")
	add(false, "id-1", "sum-2")
	add(false, "id-2", "sum-1")
	add(true, "id-2", "sum-2") // the refused ones left nothing
	all, err := s.GitEvents(t.Context())
	if err != nil || len(all) != 2 || all[0].Event != event || all[0].ConnectionID != "c1" || all[0].At.IsZero() {
		t.Fatalf("events %+v, %v", all, err)
	}
	if err := s.GitEventDone(t.Context(), all[0].ID); err != nil {
		t.Fatal(err)
	}
	if rest, _ := s.GitEvents(t.Context()); len(rest) != 1 || rest[0].ID != all[1].ID {
		t.Errorf("left: %+v", rest)
	}
	add(false, "id-1", "sum-1")
	if err := s.ForgetDeliveries(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	add(true, "id-1", "sum-1")

	d := newDeployment(t, s, svc.ID)
	for range 2 {
		if err := s.WantReport(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := s.Reports(t.Context()); err != nil || !reflect.DeepEqual(ids, []string{d.ID}) {
		t.Errorf("reports %v, %v", ids, err)
	}
	if err := s.ReportDone(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if ids, _ := s.Reports(t.Context()); len(ids) != 0 {
		t.Errorf("reports %v", ids)
	}
	if err := s.DeleteConnection(t.Context(), svc.ID); err != nil {
		t.Fatal(err)
	}
	if rest, _ := s.GitEvents(t.Context()); len(rest) != 0 {
		t.Errorf("events of a connection that is gone: %+v", rest)
	}
}
