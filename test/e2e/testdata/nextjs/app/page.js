export const dynamic = 'force-dynamic'

export default function Page() {
  return <h1>Hello, Next.js at {process.env.LEAPCELL_DEPLOYMENT}</h1>
}
