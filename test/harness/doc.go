// Package harness gives tests a whole platform, real in every part, and the means to look at
// it from all sides: as a visitor (through the edge), as an owner (API and CLI), as an
// operator (Nomad, Vault) and as the machine (processes, cgroups, files).
//
// A test package calls [Main] from its TestMain and [Get] in its tests:
//
//	func TestMain(m *testing.M) { harness.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		s := harness.Get(t).Probe(t, harness.Spec{})
//		reply := s.Get(t, "/env")
//	}
//
// One platform serves all tests of a run. [Main] brings one up unless LEAPCELL_TEST_STATE
// names the state folder of one that is up already: `go run ./test/with go test ./test/...`
// does that for several packages. After the run, what is left on the machine is compared
// with what was there before. Base images are kept from run to run for a day, in leapcell-test in the
// user's cache folder (a few GB; remove it whenever you like).
//
// Settings by environment: LEAPCELL_TEST_STATE (use this platform), LEAPCELL_TEST_KEEP=1
// (leave the platform's folder), LEAPCELL_TEST_SHARED=1 (others use this machine too: look
// only for leftovers that carry the platform's name), LEAPCELL_TEST_LAUNCHER (what makes the
// sandboxes of a new platform: runc, crun or leapcell), LEAPCELL_TEST_RUNTIME (the runtime the
// probe app is deployed on, go by default), LEAPCELL_TEST_EMULATED=1 (the processor is
// emulated: see [Allow]).
//
// Unlike the CLI and other users, the harness speaks HTTP to the API by itself: a mistake
// that client and server have in common must not hide.
package harness
