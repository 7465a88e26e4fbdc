//! What the compiler refuses: programs that would use memory they were not lent, or use it twice. Each must
//! fail for the reason given; `docs/memory.md` says what is checked when it runs instead.

/// A buffer is gone once it is finished.
///
/// ```compile_fail,E0382
/// fn after_finish(buf: hugepages::Buf) -> u32 {
///     let _loan = buf.finish(0);
///     buf.len()
/// }
/// ```
///
/// The same without the mistake:
///
/// ```
/// fn before_finish(buf: hugepages::Buf) -> (u32, hugepages::Loan) {
///     (buf.len(), buf.finish(0))
/// }
/// ```
struct UsedAfterFinish;

/// A buffer is not copied.
///
/// ```compile_fail,E0382
/// fn twice(buf: hugepages::Buf) -> (hugepages::Buf, hugepages::Buf) {
///     (buf, buf)
/// }
/// ```
///
/// ```compile_fail,E0308
/// fn copy(buf: &hugepages::Buf) -> hugepages::Buf {
///     buf.clone()
/// }
/// ```
struct Copied;

/// A receipt is settled once.
///
/// ```compile_fail,E0382
/// fn twice(lender: &hugepages::Lender, loan: hugepages::Loan) {
///     lender.settle(loan);
///     lender.settle(loan);
/// }
/// ```
struct SettledTwice;

/// Neither buffer nor receipt is made of numbers.
///
/// ```compile_fail,E0451
/// fn forge(loan: hugepages::Loan) -> hugepages::Loan {
///     hugepages::Loan { written: 0, ..loan }
/// }
/// ```
///
/// ```compile_fail,E0616
/// fn longer(buf: &mut hugepages::Buf) {
///     buf.len = u32::MAX;
/// }
/// ```
///
/// ```compile_fail,E0277
/// fn parse() {
///     fn from<T: zerocopy::FromBytes>() {}
///     from::<hugepages::Buf>()
/// }
/// ```
struct Forged;

/// No reference to the bytes leaves the crate, and only plain data is copied out of them.
///
/// ```compile_fail,E0277
/// fn reference(buf: &hugepages::Buf) -> &[u8] {
///     fn as_ref<T: AsRef<[u8]>>(t: &T) -> &[u8] { t.as_ref() }
///     as_ref(buf)
/// }
/// ```
///
/// ```compile_fail,E0277
/// fn a_reference_from_the_guest(buf: &hugepages::Buf) -> Option<&'static u8> {
///     buf.peek::<&'static u8>(0)
/// }
/// ```
///
/// ```compile_fail,E0277
/// fn a_bool_from_the_guest(buf: &hugepages::Buf) -> Option<bool> {
///     buf.peek::<bool>(0)
/// }
/// ```
struct Referred;

/// A buffer has one holder at a time, on one thread; so has its lender.
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<hugepages::Buf>();
/// ```
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<hugepages::Lender>();
/// ```
struct Shared;
