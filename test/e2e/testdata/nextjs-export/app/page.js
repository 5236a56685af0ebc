import Link from 'next/link'

export default function Page() {
  return <h1>Exported <Link href="/about">about</Link></h1>
}
